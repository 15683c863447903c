import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import NoReturn

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.children.channel import no_answers
from app.children.fork_server import ForkServer
from app.children.house import House, Order
from app.children.limits import ChildLimits
from app.errors import Invalid, Unavailable
from app.http.pools import Pool, current_pool


@pytest.fixture
def house(fork_server: ForkServer, tmp_path: Path) -> House:
    return House(fork_server, tmp_path / "scratch", children=1, waiting=2)


def test_a_full_house_refuses_at_once_and_opens_again(house: House) -> None:
    leave, entered = Event(), []

    def stay() -> None:
        entered.append(1)
        leave.wait(30)

    async def visit() -> None:
        await house.run(stay)

    async def scene() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(visit)
            while not entered or house._pool._line.size < 2:
                await anyio.sleep(0.01)
            with pytest.raises(Unavailable) as refused:
                await house.run(lambda: None)
            assert refused.value.code == "busy"
            leave.set()
        assert await house.run(lambda: "in") == "in"

    anyio.run(scene)


def test_no_more_children_run_than_there_are_slots(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [0], [0]
    limits = ChildLimits(address_space=0, file_size=0, cpu_s=0, wall_s=0)

    def run(*_: object) -> dict[str, int]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        Event().wait(0.02)
        running[0] -= 1
        return {}

    monkeypatch.setattr(house._server, "run", run)

    async def scene() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(house.run, house.child, "f", {}, limits, Path(), no_answers)

    anyio.run(scene)
    assert most == [1]


def together(house: House, work: Callable[[], object]) -> list[object]:
    """Call `work` under one key in three threads, none of which comes too late; return what each was given."""
    waiting, calls = Barrier(3), []

    def slow() -> object:
        calls.append(1)
        Event().wait(0.5)
        return work()

    def share() -> object:
        waiting.wait(30)
        try:
            return house.share(("key",), slow)
        except Invalid as error:
            return error.code

    with ThreadPoolExecutor(3) as pool:
        results = [done.result() for done in [pool.submit(share) for _ in range(3)]]
    assert len(calls) == 1
    return results


def test_equal_work_at_one_time_is_done_once(house: House) -> None:
    assert together(house, lambda: 7) == [7, 7, 7]
    assert house.share(("key",), lambda: 8) == 8  # what is over is not remembered


def test_a_refusal_is_shared_too(house: House) -> None:
    def refuse() -> NoReturn:
        raise Invalid("bad", code="bad")

    assert together(house, refuse) == ["bad", "bad", "bad"]


@pytest.fixture
def joined(house: House, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each order that has its place in the house."""
    joined: list[int] = []
    started = house._started

    def join(order: Order[int, int]) -> asyncio.Task[int]:
        joined.append(1)
        return started(order)

    monkeypatch.setattr(house, "_started", join)
    return joined


def test_equal_orders_at_one_time_take_the_room_of_one(house: House, joined: list[int]) -> None:
    leave, made, kept = Event(), [], []

    def order(number: int) -> Order[int, int]:
        def make() -> int:
            made.append(1)
            leave.wait(30)
            return 7

        return Order("key", make, lambda value: kept.append(number) or value + number)  # type: ignore[func-returns-value]

    async def scene() -> list[int]:
        current_pool.set(Pool("be worked on", places=2, queue=100))
        orders = [asyncio.create_task(house.fill(order, number)) for number in range(50)]
        while len(joined) < len(orders) or not made:
            await asyncio.sleep(0.01)
        orders[0].cancel()  # a client that goes takes nothing from the others
        leave.set()
        return await asyncio.gather(*orders[1:])

    assert asyncio.run(scene()) == [7 + number for number in range(1, 50)]
    assert len(made) == 1
    assert sorted(kept) == list(range(1, 50))


def test_an_order_that_cannot_be_made_is_refused_to_all_and_then_forgotten(house: House, joined: list[int]) -> None:
    come, made = Event(), []

    def order() -> Order[int, int]:
        def make() -> int:
            made.append(1)
            come.wait(30)
            raise Invalid("bad", code="bad")

        return Order("key", make, int)

    async def scene() -> list[object]:
        current_pool.set(Pool("be worked on", places=10, queue=100))
        orders = [asyncio.create_task(house.fill(order)) for _ in range(10)]
        while len(joined) < len(orders):
            await asyncio.sleep(0.01)
        come.set()
        together = await asyncio.gather(*orders, return_exceptions=True)
        assert len(made) == 1
        return [*together, *await asyncio.gather(house.fill(order), return_exceptions=True)]

    assert [type(refused) for refused in asyncio.run(scene())] == [Invalid] * 11
    assert len(made) == 2


@pytest.mark.parametrize("path", ["weights", "definitions"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_house_is_answered_with_when_to_come_again(app: FastAPI, client: TestClient, path: str) -> None:
    client.post("/v1/models", json={"name": "m"})
    digest = "sha256:" + hashlib.sha256(b"file").hexdigest()
    client.put(f"/v1/blobs/{digest}", content=b"file")
    setattr(app.state.children, path, House(app.state.children.server, Path(), children=0, waiting=0))
    body = {"files": [digest]} if path == "weights" else {"onnx": digest}
    answer = client.post(f"/v1/models/m/{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v1/models/m").status_code == 200
