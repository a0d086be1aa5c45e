"""A process that dies is started again later and later, and is given up when it keeps dying."""

from kinora.restarts import Restarts


def test_waits_double_up_to_a_limit() -> None:
    restarts = Restarts(allowed=8)
    assert [restarts.died(float(now)) for now in range(7)] == [0.5, 1, 2, 4, 8, 15, 15]


def test_it_is_given_up_when_it_dies_too_often() -> None:
    restarts = Restarts()
    assert all(restarts.died(float(now)) is not None for now in range(5))
    assert restarts.died(5.0) is None


def test_old_deaths_are_forgotten() -> None:
    restarts = Restarts()
    for hour in range(100):
        assert restarts.died(3600.0 * hour) == 0.5
