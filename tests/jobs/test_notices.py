import asyncio

from app.jobs.notices import Listener
from app.jobs.queue import redis_url
from app.settings import Settings


def test_listening_ends_at_whatever_moment_it_is_told_to(settings: Settings) -> None:
    async def start_and_end(turns: int) -> None:
        async with Listener(redis_url(settings.broker_url)).running():
            for _ in range(turns):
                await asyncio.sleep(0)

    async def every_moment() -> None:
        for turns in range(100):
            await asyncio.wait_for(start_and_end(turns), 30)

    asyncio.run(every_moment())
