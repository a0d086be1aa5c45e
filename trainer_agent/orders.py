"""What the agent was told to do with the attempt it holds, from whichever side it was told first.

Heartbeat replies and control messages say the same thing, may cross each other and may repeat; the
node's own shutdown comes on top. Orders therefore only ever become stronger while an attempt is held.
"""

import asyncio
from enum import IntEnum

from schemas.work import DesiredState, HeldItem


class Order(IntEnum):
    """From the weakest to the strongest."""

    CARRY_ON = 0
    SHUT_DOWN = 1
    """The node goes away: save what can be saved in time and give the attempt back."""
    STOP = 2
    """Somebody wants an end: save a checkpoint and the adapter."""
    STOP_NOW = 3
    ABANDON = 4
    """Another attempt owns the item: end the engine and say nothing more."""


_ORDERS: dict[DesiredState, Order] = {
    "run": Order.CARRY_ON,
    "stop": Order.STOP,
    "stop_immediately": Order.STOP_NOW,
    "abandon": Order.ABANDON,
}


class Orders:
    """The attempt that this agent holds, and the strongest order about it so far."""

    def __init__(self) -> None:
        self.held: HeldItem | None = None
        self.order = Order.CARRY_ON
        self.news = 0
        """How often something changed since the present attempt is held."""
        self.shutdown = asyncio.Event()
        """Set when the node goes away."""
        self._shut_down_at = 0.0
        self._changed = asyncio.Condition()

    @property
    def shutting_down(self) -> bool:
        return self.shutdown.is_set()

    def hold(self, held: HeldItem) -> None:
        self.held = held
        self.order = Order.SHUT_DOWN if self.shutting_down else Order.CARRY_ON
        self.news = 1 if self.shutting_down else 0

    def let_go(self) -> None:
        self.held = None

    async def desire(self, held: HeldItem | None, desired: DesiredState) -> None:
        """Take note of what the control plane wants, unless it speaks of something no longer held."""
        if held is not None and held == self.held:
            await self._give(_ORDERS[desired])

    async def shut_down(self) -> None:
        if not self.shutting_down:
            self._shut_down_at = asyncio.get_running_loop().time()
            self.shutdown.set()
            await self._give(Order.SHUT_DOWN)

    def seconds_left(self, allowed: float) -> float | None:
        """How much of a shutdown's `allowed` seconds is left; None while nothing is shutting down."""
        if not self.shutting_down:
            return None
        return max(0.0, self._shut_down_at + allowed - asyncio.get_running_loop().time())

    async def news_after(self, seen: int) -> None:
        """Wait until `news` is beyond `seen`: a stronger order, or the beginning of a shutdown under one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.news > seen)

    async def _give(self, order: Order) -> None:
        async with self._changed:
            if order > self.order or order is Order.SHUT_DOWN:
                self.order = max(order, self.order)
                self.news += 1
                self._changed.notify_all()
