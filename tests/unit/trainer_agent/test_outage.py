"""A failure that goes on is spoken of ever more rarely, and anew once it was over."""

from itertools import pairwise

from trainer_agent.outage import Outage


def test_an_hour_of_failures_every_second_makes_few_lines() -> None:
    outage = Outage()
    said = [second for second in range(3600) if outage.worth_saying(float(second))]
    assert said == [0, 30, 90, 210, 450, 930, 1890]


def test_the_pause_never_exceeds_an_hour() -> None:
    outage = Outage()
    said = [second for second in range(0, 86_400, 60) if outage.worth_saying(float(second))]
    assert max(later - earlier for earlier, later in pairwise(said)) == 3600


def test_the_next_outage_is_told_at_once() -> None:
    outage = Outage()
    assert not outage.over()
    assert outage.worth_saying(0.0)
    assert not outage.worth_saying(1.0)
    assert outage.over()
    assert outage.worth_saying(2.0)
    assert not outage.worth_saying(3.0)
