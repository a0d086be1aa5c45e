"""What the command line answers before it asks any service."""

from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from kinora.cli.app import app


def test_it_tells_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"kinora {version('kinora')}\n")


def test_a_secrets_name_is_checked_before_its_value() -> None:
    result = CliRunner().invoke(app, ["secrets", "set", "Bad_Name!"], input="")
    assert result.exit_code == 2
    assert "'Bad_Name!' cannot be the name of a secret" in result.stderr


def test_an_export_alone_is_told_what_verifies_it(tmp_path: Path) -> None:
    export = tmp_path / "events.ndjson"
    export.write_text("")
    result = CliRunner().invoke(app, ["events", "verify", str(export)])
    assert result.exit_code == 2
    assert "give --head and --key" in result.stderr
    assert "kinora audit fetch FOLDER gets them" in " ".join(result.stderr.split())
