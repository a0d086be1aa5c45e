"""Every vocabulary has a word for every phase."""

import pytest

from schemas.events.agent import AgentOnline
from schemas.events.job import WarningRaised
from schemas.job_status import (
    PHASES,
    JobPhase,
    openai_status,
    phase_after,
    simple_status,
    training_status,
    upper_status,
)

WORDS: dict[JobPhase, tuple[str, str, str, str]] = {
    "pending": ("queued", "pending", "PENDING", "validating_files"),
    "validating": ("queued", "validating", "PENDING", "validating_files"),
    "queued": ("queued", "queued", "QUEUED", "queued"),
    "assigned": ("queued", "queued", "QUEUED", "queued"),
    "preparing": ("running", "running", "RUNNING", "running"),
    "running": ("running", "running", "RUNNING", "running"),
    "stopping": ("running", "running", "RUNNING", "running"),
    "finalizing": ("running", "running", "RUNNING", "running"),
    "succeeded": ("completed", "succeeded", "COMPLETED", "succeeded"),
    "failed": ("failed", "failed", "FAILED", "failed"),
    "cancelled": ("stopped", "cancelled", "CANCELLED", "cancelled"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_in_every_vocabulary(phase: JobPhase) -> None:
    words = (training_status(phase), simple_status(phase), upper_status(phase), openai_status(phase))
    assert words == WORDS[phase]


@pytest.mark.parametrize("phase", [None, *PHASES])
def test_events_that_change_no_phase_leave_it(phase: JobPhase | None) -> None:
    assert phase_after(phase, WarningRaised(attempt=1, code="slow", message="slow")) == phase
    assert phase_after(phase, AgentOnline()) == phase
