"""What the command line prints can be copied into the next command, however narrow the place."""

import io

import pytest
from rich.console import Console

from kinora.cli import output
from kinora.cli.output import fitting, print_facts, print_table
from kinora.client import Json

ID = "job_" + "0" * 32
ROW: Json = {"id": ID, "status": "running", "agent": "agt_" + "1" * 32, "name": "a name of six words in all"}
COLUMNS = {name: (lambda row, name=name: row[name]) for name in ROW}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, printed: io.StringIO, request: pytest.FixtureRequest) -> Console:
    console = Console(file=printed, width=60, force_terminal=request.param, color_system=None)
    monkeypatch.setattr(output, "out", console)
    return console


@pytest.mark.parametrize("console", [False], indirect=True)
@pytest.mark.usefixtures("console")
def test_a_pipe_gets_every_row_on_one_line(printed: io.StringIO) -> None:
    print_table([ROW], COLUMNS, "nothing")
    heading, row = printed.getvalue().splitlines()
    assert heading.split() == list(ROW)
    assert row.split() == " ".join(ROW.values()).split()


@pytest.mark.parametrize("console", [True], indirect=True)
@pytest.mark.usefixtures("console")
def test_a_narrow_terminal_keeps_ids_and_status_whole(
    printed: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table([ROW], COLUMNS, "nothing")
    lines = printed.getvalue().splitlines()
    assert lines[1].split()[:2] == [ID, "running"]
    assert max(map(len, lines)) <= 60
    assert "…" not in printed.getvalue()
    assert " ".join(line[47:].strip() for line in lines[1:]).split() == ROW["name"].split()
    assert "left out in this width: agent" in capsys.readouterr().err


@pytest.mark.parametrize("console", [False, True], indirect=True)
@pytest.mark.usefixtures("console")
def test_a_fact_is_never_broken(printed: io.StringIO) -> None:
    print_facts({"sha256": "f" * 64})
    assert printed.getvalue().split() == ["sha256", "f" * 64]


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (100, (["id", "status", "agent", "age", "name"], None)),
        (90, (["id", "status", "agent", "age", "name"], 12)),
        (80, (["id", "status", "age", "name"], None)),
        (20, (["id", "status", "name"], 10)),
    ],
)
def test_what_is_left_out_first(room: int, expected: tuple[list[str], int | None]) -> None:
    assert fitting({"id": 36, "status": 7, "agent": 24, "age": 3, "name": 20}, room) == expected
