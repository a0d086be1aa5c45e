"""Leases: nothing expires before a whole period without a word."""

from command_api.messaging.leases import Held, Leases

ONE = Held("job_1", 1, "agt_a")
TWO = Held("job_2", 3, "agt_b")


def test_a_new_attempt_gets_a_whole_period() -> None:
    leases = Leases(30)
    leases.sync([ONE], [], now=100)
    leases.sync([ONE], [], now=129.9)
    assert leases.expired(129.9) == []
    assert leases.expired(130) == [ONE]


def test_a_heartbeat_that_names_the_attempt_extends_it() -> None:
    leases = Leases(30)
    leases.sync([ONE, TWO], [], now=0)
    assert leases.heard("agt_a", ONE, now=20) == 50
    assert leases.expired(30) == [TWO]
    assert leases.expired(50) == [ONE, TWO]


def test_a_heartbeat_without_the_attempt_does_not_extend_it() -> None:
    leases = Leases(30)
    leases.sync([ONE], ["agt_a"], now=0)
    leases.heard("agt_a", None, now=25)
    assert leases.expired(30) == [ONE]
    assert leases.silent(30) == []


def test_nobody_extends_the_lease_of_another_agent() -> None:
    leases = Leases(30)
    leases.sync([ONE], [], now=0)
    leases.heard("agt_b", ONE, now=25)
    assert leases.expired(30) == [ONE]


def test_an_older_attempt_does_not_extend_the_newer_one() -> None:
    leases = Leases(30)
    newer = Held("job_1", 2, "agt_a")
    leases.sync([newer], [], now=0)
    leases.heard("agt_a", ONE, now=25)
    leases.sync([newer], [], now=26)
    assert leases.expired(30) == [newer]


def test_a_restart_gives_everybody_a_whole_period() -> None:
    leases = Leases(30)
    leases.sync([ONE], ["agt_a"], now=0)
    leases.restart(now=1000)
    assert leases.expired(1029) == []
    assert leases.silent(1029) == []
    assert leases.expired(1030) == [ONE]
    assert leases.silent(1030) == ["agt_a"]


def test_what_ended_cannot_expire() -> None:
    leases = Leases(30)
    leases.sync([ONE, TWO], ["agt_a"], now=0)
    leases.sync([TWO], [], now=10)
    assert leases.expired(30) == [TWO]
    assert leases.silent(30) == []
