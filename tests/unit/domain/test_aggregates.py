import pytest

from command_api.domain.aggregates import AGGREGATES, aggregate_of
from command_api.domain.errors import ImpossibleHistory
from schemas.ids import Prefix
from tests.unit.domain.samples import DATASET, DATASET_READY, DATASET_VALIDATED, WORKSPACE


def test_a_stream_is_found_by_its_prefix() -> None:
    assert aggregate_of(DATASET) is AGGREGATES[Prefix.DATASET]
    with pytest.raises(ValueError, match="names no stream"):
        aggregate_of(WORKSPACE)


def test_folding_may_go_on_from_an_earlier_state() -> None:
    aggregate = AGGREGATES[Prefix.DATASET]
    earlier = aggregate.fold(DATASET_READY[:2])
    assert aggregate.fold(DATASET_READY[2:], earlier) == aggregate.fold(DATASET_READY)


@pytest.mark.parametrize("prefix", list(AGGREGATES))
def test_a_damaged_history_is_noticed(prefix: Prefix) -> None:
    with pytest.raises(ImpossibleHistory, match="DatasetValidated cannot follow"):
        AGGREGATES[prefix].fold([DATASET_VALIDATED])
