"""`service.planning.pool`: plans take turns, and more than can wait are refused."""

import asyncio
import threading

import pytest

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.planning.pool import PLANS_AT_ONCE, PLANS_WAITING, PlanningPool


def test_more_plans_than_may_wait_are_refused_and_those_that_wait_are_made():
    pool, go = PlanningPool(), threading.Event()
    begun = []

    def plan(number):
        begun.append(number)
        assert go.wait(30)
        return number

    async def ask():
        allowed = [asyncio.create_task(pool.run(plan, i)) for i in range(PLANS_AT_ONCE + PLANS_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as refused:
            await pool.run(plan, -1)
        uploaded = asyncio.create_task(pool.run_in_any_case(plan, 99))
        await asyncio.sleep(0)
        assert len(begun) <= PLANS_AT_ONCE
        go.set()
        assert await asyncio.gather(*allowed) == list(range(PLANS_AT_ONCE + PLANS_WAITING))
        assert await uploaded == 99
        assert await pool.run(plan, 7) == 7
        return refused.value

    refused = asyncio.run(ask())
    pool.close()
    assert refused.kind is ProblemKind.BUSY
    assert refused.headers["Retry-After"] == "2"


def test_a_client_that_goes_away_before_its_turn_leaves_its_place():
    pool, go = PlanningPool(), threading.Event()

    async def ask():
        waiting = [asyncio.create_task(pool.run(go.wait, 30)) for _ in range(PLANS_AT_ONCE + PLANS_WAITING)]
        await asyncio.sleep(0)
        waiting.pop().cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(pool.run(go.wait, 30))
        await asyncio.sleep(0)
        go.set()
        assert all(await asyncio.gather(last, *waiting))

    asyncio.run(ask())
    pool.close()
