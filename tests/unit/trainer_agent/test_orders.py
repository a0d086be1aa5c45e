"""Orders become stronger, never weaker, and speak only of what is held."""

import asyncio

import pytest

from schemas.ids import Prefix, new_id
from schemas.work import DesiredState, HeldItem
from trainer_agent.orders import Order, Orders

DESIRED: tuple[DesiredState, ...] = ("stop", "run", "abandon", "stop_immediately")
HELD = HeldItem(item_id=new_id(Prefix.JOB), attempt=2)


async def test_a_late_heartbeat_does_not_take_a_stop_back() -> None:
    orders = Orders()
    orders.hold(HELD)
    seen = []
    for desired in DESIRED:
        await orders.desire(HELD, desired)
        seen.append(orders.order)
    assert seen == [Order.STOP, Order.STOP, Order.ABANDON, Order.ABANDON]


async def test_orders_about_another_attempt_are_ignored() -> None:
    orders = Orders()
    orders.hold(HELD)
    await orders.desire(HELD.model_copy(update={"attempt": 1}), "abandon")
    await orders.desire(None, "abandon")
    assert orders.order is Order.CARRY_ON


async def test_the_next_attempt_begins_without_the_last_ones_orders() -> None:
    orders = Orders()
    orders.hold(HELD)
    await orders.desire(HELD, "stop")
    orders.let_go()
    orders.hold(HELD.model_copy(update={"attempt": 3}))
    assert orders.order is Order.CARRY_ON


async def test_a_shutdown_is_news_also_under_a_stop_and_starts_the_clock() -> None:
    orders = Orders()
    orders.hold(HELD)
    assert orders.seconds_left(20.0) is None
    await orders.desire(HELD, "stop")
    seen = orders.news
    waiting = asyncio.create_task(orders.news_after(seen))
    await orders.shut_down()
    await asyncio.wait_for(waiting, 5)
    assert orders.order is Order.STOP
    assert orders.seconds_left(20.0) == pytest.approx(20.0, abs=5)
    assert orders.seconds_left(0.0) == 0.0
