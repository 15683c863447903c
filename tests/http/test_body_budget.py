import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from app.http.body_budget import SMALL, BodyBudget

LARGE = 4 * SMALL


class Sender:
    """A request whose body arrives as the test sends it; `outcome` is its length, or the status it is refused with."""

    def __init__(self, budget: BodyBudget, path: str = "/v1/models") -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.answered = asyncio.Event()
        self._task = asyncio.create_task(self._run(budget, path))

    async def _run(self, budget: BodyBudget, path: str) -> int:
        scope: Scope = {"type": "http", "path": path, "sender": self}
        try:
            await budget(scope, self._messages.get, _nowhere)
        except HTTPException as error:
            return error.status_code
        return 200

    async def send(self, nbytes: int, *, more: bool = True) -> None:
        await self._messages.put({"type": "http.request", "body": bytes(nbytes), "more_body": more})
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def outcome(self) -> int:
        self.answered.set()
        async with asyncio.timeout(5):
            return await self._task


async def _nowhere(_message: Message) -> None:
    pass


async def application(scope: Scope, receive: Receive, _send: Send) -> None:
    """Read the body, and hold it until the test lets the answer be sent."""
    held: list[Any] = []
    while (message := await receive())["more_body"]:
        held.append(message)
    await scope["sender"].answered.wait()


def test_bodies_are_taken_up_to_the_limit_and_those_that_are_answered_make_room() -> None:
    async def run() -> None:
        budget = BodyBudget(application, 2 * LARGE)
        first, second = Sender(budget), Sender(budget)
        await first.send(LARGE, more=False)
        await second.send(LARGE, more=False)
        third = Sender(budget)
        await third.send(LARGE, more=False)
        assert await third.outcome() == 503
        assert await first.outcome() == 200
        fourth = Sender(budget)
        await fourth.send(LARGE, more=False)
        assert (await fourth.outcome(), await second.outcome()) == (200, 200)

    asyncio.run(run())


def test_the_body_that_has_been_arriving_longest_makes_room() -> None:
    async def run() -> None:
        budget = BodyBudget(application, 2 * LARGE)
        senders = [Sender(budget) for _ in range(3)]
        for sender in senders[:2]:
            await sender.send(LARGE)
        await senders[2].send(LARGE, more=False)
        assert [sender.running for sender in senders] == [False, True, True]
        assert await senders[0].outcome() == 503
        await senders[1].send(0, more=False)
        assert [await sender.outcome() for sender in senders[1:]] == [200, 200]

    asyncio.run(run())


def test_small_bodies_are_taken_whatever_large_ones_hold() -> None:
    async def run() -> None:
        budget = BodyBudget(application, LARGE)
        large, small = Sender(budget), Sender(budget)
        await large.send(LARGE)
        await small.send(SMALL, more=False)
        assert await small.outcome() == 200
        assert large.running
        await large.send(0, more=False)
        assert await large.outcome() == 200

    asyncio.run(run())


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 503), ("/v1/blobs/sha256:0", 200)])
def test_uploads_are_not_counted(path: str, status: int) -> None:
    async def run() -> None:
        sender = Sender(BodyBudget(application, LARGE), path)
        await sender.send(2 * LARGE, more=False)
        assert await sender.outcome() == status

    asyncio.run(run())
