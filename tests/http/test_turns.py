import asyncio

from app.http.turns import Line, LoopTurns


def everyone(line: Line[str]) -> list[str]:
    found = []
    while (one := line.next()) is not None:
        found.append(one[1])
    return found


def crowded(*names: str) -> Line[str]:
    """A line of names whose first letter is the address."""
    line: Line[str] = Line()
    for name in names:
        line.join(name[0], name)
    return line


def test_addresses_take_turns_and_within_one_the_first_comes_first() -> None:
    line = crowded("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert everyone(line) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert line.size == 0


def test_an_address_that_may_not_come_keeps_its_place() -> None:
    line = crowded("a1", "b1", "a2")
    assert line.next(lambda address: address != "a") == ("b", "b1")
    assert line.next(lambda _: False) is None
    assert everyone(line) == ["a1", "a2"]


def test_the_address_with_the_most_has_to_give_way() -> None:
    line = crowded("a1", "b1", "b2")
    assert (line.longest("a"), line.longest("b"), line.longest("c")) == ("b", "b", "b")
    assert line.newest("b") == "b2"
    line.leave("b", "b2")
    assert line.longest("a") == "a"  # none has more
    line.leave("b", "b2")  # has gone already
    assert (line.size, everyone(line)) == (2, ["a1", "b1"])


def test_no_turn_of_the_loop_begins_more_than_it_may() -> None:
    async def scene() -> list[list[str]]:
        begun: list[str] = []
        turns: LoopTurns[str] = LoopTurns(begun.append, at_once=2)
        for number in range(5):
            turns.add("flood", f"flood {number}")
        turns.add("other", "other")
        seen = []
        while len(begun) < 6:
            seen.append(begun[:])
            begun.clear()
            if not turns.line.size:
                break
            await asyncio.sleep(0)
        return [*seen, begun]

    first, second, third, *_ = asyncio.run(scene())
    assert first == ["flood 0", "flood 1"]
    assert second == ["flood 2", "other"]
    assert third == ["flood 3", "flood 4"]


def test_whoever_comes_alone_begins_at_once() -> None:
    async def scene() -> list[int]:
        begun: list[int] = []
        turns: LoopTurns[int] = LoopTurns(begun.append, at_once=1)
        for number in range(3):
            turns.add("one", number)
            assert begun == list(range(number + 1))
            await asyncio.sleep(0)
        return begun

    assert asyncio.run(scene()) == [0, 1, 2]
