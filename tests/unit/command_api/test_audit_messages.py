"""What the auditor takes for a fault of the stream, and what not."""

from dataclasses import replace

import pytest

from command_api.audit.messages import Checked, StreamMessage, fault_of
from command_api.messaging.epochs import before_first, epoch_of
from projections.reader import LogRow
from schemas.envelope import public_bytes

LOG = "log_1"
POSITIONS = (1, 2, 5, 6)
"""With a gap, as a rollback leaves one."""
ROWS = [
    LogRow(at, "job_1", at, "kinora.job.queued", f"evt_{at}", "org_1", None, b'{"n":%d}' % at)
    for at in POSITIONS
]
START = Checked.start_of(3)


def message(index: int) -> StreamMessage:
    row, previous = ROWS[index], ROWS[index - 1].position if index else 0
    headers = {
        "Nats-Msg-Id": row.event_id,
        "Kinora-Position": str(row.position),
        "Kinora-Previous-Position": str(previous),
        "Kinora-Log-Id": LOG,
        "Kinora-Epoch": "3",
    }
    body = public_bytes(row.position, LOG, row.state)
    return StreamMessage(before_first(3) + 1 + index, "kinora.v1.org_1._.job.queued", headers, body)


MESSAGES = [message(index) for index in range(len(ROWS))]


def changed(index: int, **headers: str) -> list[StreamMessage]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return [
        replace(each, headers={**each.headers, **names}) if at == index else each
        for at, each in enumerate(MESSAGES)
    ]


def test_a_stream_that_holds_the_log_has_no_fault() -> None:
    assert fault_of(START, MESSAGES, ROWS, LOG) is None
    assert fault_of(START, [], [], LOG) is None
    assert fault_of(Checked(3, before_first(3) + 2, 2), MESSAGES[2:], ROWS[2:], LOG) is None


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        pytest.param(MESSAGES[:1] + MESSAGES[2:], "position 2 is missing", id="missing"),
        pytest.param(MESSAGES[1:], "position 1 is missing", id="first_missing"),
        pytest.param([*MESSAGES[:2], *MESSAGES[1:]], "position 2 stands in it twice", id="twice"),
        pytest.param([MESSAGES[1], MESSAGES[0], *MESSAGES[2:]], "position 1 is missing", id="swapped"),
        pytest.param([*MESSAGES, MESSAGES[-1]], "position 6 stands in it and not in the log", id="more"),
        pytest.param(changed(1, Kinora_Epoch="2"), "of another log or epoch", id="epoch"),
        pytest.param(changed(1, Kinora_Log_Id="log_2"), "of another log or epoch", id="log"),
        pytest.param(changed(2, Kinora_Previous_Position="1"), "does not name 2", id="chain"),
        pytest.param(changed(2, Nats_Msg_Id="evt_9"), "the id of another event", id="id"),
        pytest.param(changed(2, Kinora_Position="x"), "stands in it twice", id="no_position"),
        pytest.param([replace(MESSAGES[0], body=b"{}"), *MESSAGES[1:]], "other bytes", id="bytes"),
        pytest.param([replace(MESSAGES[0], subject="kinora.v1.x"), *MESSAGES[1:]], "subject", id="subject"),
        pytest.param(
            [*MESSAGES[:3], replace(MESSAGES[3], sequence=before_first(3) + 9)],
            "missing between the positions 5 and 6",
            id="sequence",
        ),
    ],
)
def test_every_difference_is_a_fault(messages: list[StreamMessage], fault: str) -> None:
    found = fault_of(START, messages, ROWS, LOG)
    assert found is not None
    assert fault in found


def test_sequences_name_their_epoch_and_only_grow() -> None:
    assert epoch_of(before_first(7) + 1) == epoch_of(before_first(8) - 1) == 7
    assert before_first(8191) + 2**40 <= 2**53
