import asyncio

from starlette.types import Message, Receive, Scope, Send

from app.http.beginning import AT_ONCE, Beginning
from app.http.turns import current_address


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _send(_message: Message) -> None: ...


def test_a_flood_begins_a_few_at_a_time_and_another_client_with_the_next_turn() -> None:
    async def scene() -> tuple[list[str], list[str]]:
        begun: list[str] = []

        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            begun.append(current_address.get())

        beginning = Beginning(app)
        clients = ["192.0.2.1"] * 50 + ["192.0.2.2"]
        scopes: list[Scope] = [{"type": "http", "client": (client, 1)} for client in clients]
        tasks = [asyncio.create_task(beginning(scope, _nothing, _send)) for scope in scopes]
        while "192.0.2.2" not in begun:
            await asyncio.sleep(0)
        before = begun[:]
        await asyncio.gather(*tasks)
        return before, begun

    before, after = asyncio.run(scene())
    assert len(before) <= 3 * AT_ONCE
    assert len(after) == 51


def test_what_is_no_request_does_not_wait() -> None:
    passed: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Beginning(app)({"type": "lifespan"}, _nothing, _send))
    assert passed == ["lifespan"]
