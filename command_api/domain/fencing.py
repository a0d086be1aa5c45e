"""The two answers to whoever acts on an attempt that is not theirs."""

from command_api.domain.errors import Conflict


def offer_gone(item_id: str, attempt: int) -> Conflict:
    """The claimed attempt is not waiting for an agent: taken, over, or not yet offered."""
    return Conflict(
        f"attempt {attempt} of {item_id} is not waiting for an agent; forget it", code="offer_gone"
    )


def attempt_not_held(item_id: str, agent_id: str, attempt: int) -> Conflict:
    """A report of an attempt that its sender does not hold: stale, and to be dropped."""
    return Conflict(
        f"agent {agent_id} does not hold attempt {attempt} of {item_id}; end it and report nothing more",
        code="attempt_not_held",
    )
