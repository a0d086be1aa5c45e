"""What the command line answers before it asks any service."""

from importlib.metadata import version

from typer.testing import CliRunner

from kinora.cli.app import app


def test_it_tells_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"kinora {version('kinora')}\n")


def test_a_secrets_name_is_checked_before_its_value() -> None:
    result = CliRunner().invoke(app, ["secrets", "set", "Bad_Name!"], input="")
    assert result.exit_code == 2
    assert "'Bad_Name!' cannot be the name of a secret" in result.stderr
