import asyncio
import threading

import pytest

from app.errors import Unavailable
from app.http.pools import Pool
from app.http.turns import current_address


def test_a_full_house_is_told_at_once_and_what_waits_is_let_in_later() -> None:
    async def crowd() -> list[object]:
        pool = Pool("be tested", places=2, queue=1)
        gate = threading.Event()

        async def visit() -> object:
            try:
                async with pool.place():
                    return await pool.thread(gate.wait, 30)
            except Unavailable as error:
                gate.set()  # refused while the others still hold their places
                return error.code

        return list(await asyncio.gather(*(visit() for _ in range(5))))

    assert sorted(asyncio.run(crowd()), key=str) == [True, True, True, "busy", "busy"]


def test_whoever_was_let_in_before_waits_for_a_place_however_long_the_queue() -> None:
    async def crowd() -> list[int]:
        pool = Pool("be tested", places=1, queue=0)
        return list(await asyncio.gather(*(pool.run(abs, -number) for number in range(20))))

    assert asyncio.run(crowd()) == list(range(20))


def test_a_full_pool_keeps_nobody_of_another_waiting() -> None:
    async def read_beside() -> int:
        slow, reads = (Pool("be tested", places=1, queue=9) for _ in range(2))
        gate = threading.Event()
        work = [asyncio.create_task(slow.run(gate.wait, 30)) for _ in range(60)]  # more than any shared pool has
        await asyncio.sleep(0)
        answer = await asyncio.wait_for(reads.run(abs, -1), 20)
        gate.set()
        await asyncio.gather(*work)
        return answer

    assert asyncio.run(read_beside()) == 1


def test_a_place_is_given_back_after_an_error() -> None:
    async def fail_twice() -> None:
        pool = Pool("be tested", places=1, queue=0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with pool.place():
                    await pool.thread(divmod, 1, 0)

    asyncio.run(fail_twice())


def test_one_address_leaves_places_for_others_and_takes_turns_with_them() -> None:
    async def crowd() -> list[str]:
        pool = Pool("be tested", places=2, queue=100, share=1)
        gate, done = threading.Event(), list[str]()

        async def visit(address: str) -> None:
            current_address.set(address)
            async with pool.place():
                await pool.thread(gate.wait, 30)
            done.append(address)

        flood = [asyncio.create_task(visit("flood")) for _ in range(20)]
        await asyncio.sleep(0)
        other = asyncio.create_task(visit("other"))  # finds a place free, though 19 wait
        while pool._free:
            await asyncio.sleep(0)
        assert pool._taken == {"flood": 1, "other": 1}
        gate.set()
        await asyncio.gather(*flood, other)
        assert (pool._free, pool._taken, pool._line.size) == (2, {}, 0)
        return done

    assert len(asyncio.run(crowd())) == 21


def test_a_full_queue_gives_way_to_an_address_that_has_less_in_it() -> None:
    async def crowd() -> list[str]:
        pool = Pool("be tested", places=1, queue=2)
        gate = threading.Event()

        async def visit(address: str) -> str:
            current_address.set(address)
            try:
                async with pool.place():
                    await pool.thread(gate.wait, 30)
            except Unavailable as error:
                return error.code
            return "in"

        flood = [asyncio.create_task(visit("flood")) for _ in range(3)]
        await asyncio.sleep(0)
        other = asyncio.create_task(visit("other"))
        late = asyncio.create_task(visit("flood"))
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(*flood, other, late))

    assert asyncio.run(crowd()) == ["in", "in", "busy", "in", "busy"]


def test_whoever_goes_while_waiting_leaves_no_trace() -> None:
    async def crowd() -> None:
        pool = Pool("be tested", places=1, queue=9)
        async with pool.place():
            going = [asyncio.create_task(pool.run(abs, -1)) for _ in range(3)]
            await asyncio.sleep(0)
            going[1].cancel()
            await asyncio.sleep(0)
            assert pool._line.size == 2
        going[0].cancel()  # its turn has just come
        await asyncio.gather(*going, return_exceptions=True)
        assert (pool._free, pool._line.size, await pool.run(abs, -2)) == (1, 0, 2)

    asyncio.run(crowd())
