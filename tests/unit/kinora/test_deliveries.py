"""What `kinora subscriptions redeliver` asks for before it asks the service."""

import pytest
from typer.testing import CliRunner

from kinora.cli.subscriptions import app


@pytest.mark.parametrize(
    "arguments",
    [[], ["dlv_1", "--from", "5"], ["--until", "5"], ["dlv_1", "--until", "5"]],
)
def test_redelivery_is_of_one_delivery_or_of_a_stretch(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["redeliver", "sub_1", *arguments])
    assert result.exit_code == 2
    assert "--from POSITION" in result.output
