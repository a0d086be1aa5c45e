"""Whoever waits for a verdict is woken by the event that brings it."""

import pytest

from kinora.cli.progress import ends_validation
from schemas.envelope import versioned_type
from schemas.events.dataset import DatasetDeleted, DatasetRejected, DatasetValidated, DatasetValidationStarted
from schemas.events.model import ModelDeleted, ModelRejected, ModelUploaded, ModelValidated
from schemas.events.registry import Event


@pytest.mark.parametrize(
    "event",
    [DatasetValidated, DatasetRejected, DatasetDeleted, ModelValidated, ModelRejected, ModelDeleted],
)
def test_a_verdict_ends_the_wait(event: type[Event]) -> None:
    assert ends_validation(versioned_type(event))


@pytest.mark.parametrize("event", [DatasetValidationStarted, ModelUploaded])
def test_what_comes_before_it_does_not(event: type[Event]) -> None:
    assert not ends_validation(versioned_type(event))
