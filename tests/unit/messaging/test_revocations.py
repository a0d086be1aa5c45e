"""When the server has to be told again whom it shuts out."""

from command_api.messaging.revocations import covers


def test_nobody_is_told_twice_of_the_same() -> None:
    assert covers({}, {})
    assert covers({"a": 5, "b": 7}, {"a": 5})  # the other's JWTs have all expired


def test_a_key_that_came_back_and_is_revoked_again_is_news() -> None:
    assert not covers({}, {"a": 5})
    assert not covers({"a": 5}, {"a": 6})
