"""Reads pickles that nobody vouches for.

A pickle is a program for a machine with a stack and a memo (`pickletools.py` in the standard library describes each
instruction). This machine has the instructions of binary pickles, protocols 2 to 5. It makes plain values only, and
never looks up, imports, calls or changes anything but the stand-ins that `find` gives. `pickle.Unpickler` would set
attributes of these, hash keys of any depth, and take memory for whatever a length or a place in the memo says.
"""

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from app.weights.checkpoint import CheckpointError

MAX_INSTRUCTIONS: Final = 16_000_000  # a checkpoint of 100,000 tensors takes 4 million
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_INTEGER_BYTES: Final = 256
MAX_ARGUMENTS: Final = 32  # each call copies them
MAX_LINE_BYTES: Final = 512
STOP: Final = b"."

Find = Callable[[str, str], Any]  # a module and a name in it to what stands for it
Persist = Callable[[object], object]  # what a pickle calls a value outside of it to that value


class Inert:
    """Stands for a value that says nothing of tensors, such as a device, a set or a scalar of numpy."""

    __slots__ = ()


INERT: Final = Inert()


def run(file: BinaryIO, find: Find, persist: Persist) -> object:
    """Return the next pickled value of a file. Dictionaries have only those of their entries whose keys are text.

    Raises CheckpointError.
    """
    machine = _Machine(file, find, persist)
    try:
        return machine.run()
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:  # what wrong instructions come to
        raise CheckpointError(
            "bad_header",
            f"The pickle in the file cannot be read ({type(error).__name__}: {error!s:.200}). Upload the whole file, "
            "or save the checkpoint again.",
        ) from error


class _Machine:
    def __init__(self, file: BinaryIO, find: Find, persist: Persist) -> None:
        self._file, self._find, self._persist = file, find, persist
        self._left = MAX_BYTES
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # one stack for each mark that was set
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            code = self._take(1)
            if code == STOP:
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise CheckpointError(
                    "bad_header",
                    f"The pickle in the file has the instruction {code!r}, which is not one of binary pickles. Save "
                    "the checkpoint again with torch.save.",
                )
            step(self)
        raise _too_large(f"more than {MAX_INSTRUCTIONS} instructions")

    def _take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise _too_large(f"more than {MAX_BYTES} bytes")
        data = self._file.read(count)
        if len(data) < count:
            raise CheckpointError("truncated_file", "The file ends inside its pickle. Upload the whole file.")
        return data

    def _number(self, layout: str) -> Any:  # noqa: ANN401 - as struct says
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return value

    def _line(self) -> str:
        line = self._file.readline(MAX_LINE_BYTES)
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise ValueError("a name without an end")
        return line[:-1].decode()

    def push(self, value: object) -> None:
        self._stack.append(value)

    def _pop_marked(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def skip(self, count: int) -> None:
        self._take(count)

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_marked(self) -> None:
        self._pop_marked()

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._below.pop()

    def duplicate(self) -> None:
        self.push(self._stack[-1])

    def number(self, layout: str) -> None:
        self.push(self._number(layout))

    def integer(self, layout: str) -> None:
        count = self._number(layout)
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {count} bytes")
        self.push(int.from_bytes(self._take(count), "little", signed=True))

    def data(self, layout: str) -> None:
        self.push(self._take(self._length(layout)))

    def text(self, layout: str) -> None:
        self.push(self._take(self._length(layout)).decode("utf-8", "surrogatepass"))

    def old_text(self, layout: str) -> None:
        """Python 2's text, which may as well be any bytes."""
        self.push(self._take(self._length(layout)).decode("utf-8", "replace"))

    def _length(self, layout: str) -> int:
        length: int = self._number(layout)
        if length < 0:
            raise ValueError("a negative length")
        return length

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("a tuple of more values than there are")
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self.push(values)

    def tuple_marked(self) -> None:
        values = tuple(self._pop_marked())
        self.push(values)

    def list_marked(self) -> None:
        values = self._pop_marked()
        self.push(values)

    def dict_marked(self) -> None:
        values = self._pop_marked()
        self.push({})
        self._set(values)

    def inert_marked(self) -> None:
        self._pop_marked()
        self.push(INERT)

    def append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def extend(self) -> None:
        values = self._pop_marked()
        self._extend(values)

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif target is not INERT:
            raise TypeError("something is appended to what is no list")

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        values = self._pop_marked()
        self._set(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is dict:
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if type(key) is str)
        elif target is not INERT:
            raise TypeError("an entry is put into what is no dictionary")

    def add_items(self) -> None:
        self._pop_marked()
        if self._stack[-1] is not INERT:
            raise TypeError("something is added to what is no set")

    def remember(self, layout: str) -> None:
        self._memo[self._number(layout)] = self._stack[-1]

    def remember_next(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, layout: str) -> None:
        self.push(self._memo[self._number(layout)])

    def find_named(self) -> None:
        module, name = self._line(), self._line()
        self.push(self._find(module, name))

    def find_stacked(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name that is no text")
        self.push(self._find(module, name))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple or not callable(function) or len(arguments) > MAX_ARGUMENTS:
            raise TypeError("what is no function is called, or with more than it takes")
        self.push(function(*arguments))

    def build(self) -> None:
        """Give a value its attributes: those of a dictionary or of what is inert are let go."""
        self._stack.pop()
        target = self._stack[-1]
        if type(target) is not dict and target is not INERT:
            raise TypeError("attributes are given to what has none")

    def persistent(self) -> None:
        self.push(self._persist(self._stack.pop()))


_Step = Callable[[_Machine], None]


def _push(value: object) -> _Step:
    return lambda machine: machine.push(value)


def _with(method: Callable[[_Machine, Any], None], argument: object) -> _Step:
    return lambda machine: method(machine, argument)


def _too_large(what: str) -> CheckpointError:
    return CheckpointError(
        "header_too_large",
        f"The pickle in the file has {what}. Save the state dict alone, or split the checkpoint up.",
    )


_STEPS: Final[dict[bytes, _Step]] = {
    b"\x80": _with(_Machine.skip, 1),  # PROTO
    b"\x95": _with(_Machine.skip, 8),  # FRAME
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_marked,
    b"2": _Machine.duplicate,
    b"N": _push(None),
    b"\x88": _push(True),  # noqa: FBT003 - the value itself
    b"\x89": _push(False),  # noqa: FBT003 - the value itself
    b"K": _with(_Machine.number, "<B"),
    b"M": _with(_Machine.number, "<H"),
    b"J": _with(_Machine.number, "<i"),
    b"\x8a": _with(_Machine.integer, "<B"),  # LONG1
    b"\x8b": _with(_Machine.integer, "<i"),  # LONG4
    b"G": _with(_Machine.number, ">d"),
    b"C": _with(_Machine.data, "<B"),
    b"B": _with(_Machine.data, "<I"),
    b"\x8e": _with(_Machine.data, "<Q"),  # BINBYTES8
    b"\x96": _with(_Machine.data, "<Q"),  # BYTEARRAY8
    b"\x8c": _with(_Machine.text, "<B"),  # SHORT_BINUNICODE
    b"X": _with(_Machine.text, "<I"),
    b"\x8d": _with(_Machine.text, "<Q"),  # BINUNICODE8
    b"U": _with(_Machine.old_text, "<B"),
    b"T": _with(_Machine.old_text, "<i"),
    b")": _push(()),
    b"\x85": _with(_Machine.tuple_of, 1),
    b"\x86": _with(_Machine.tuple_of, 2),
    b"\x87": _with(_Machine.tuple_of, 3),
    b"t": _Machine.tuple_marked,
    b"]": lambda machine: machine.push([]),
    b"l": _Machine.list_marked,
    b"a": _Machine.append,
    b"e": _Machine.extend,
    b"}": lambda machine: machine.push({}),
    b"d": _Machine.dict_marked,
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"\x8f": _push(INERT),  # EMPTY_SET
    b"\x90": _Machine.add_items,
    b"\x91": _Machine.inert_marked,  # FROZENSET
    b"q": _with(_Machine.remember, "<B"),
    b"r": _with(_Machine.remember, "<I"),
    b"\x94": _Machine.remember_next,
    b"h": _with(_Machine.recall, "<B"),
    b"j": _with(_Machine.recall, "<I"),
    b"c": _Machine.find_named,
    b"\x93": _Machine.find_stacked,
    b"R": _Machine.call,
    b"\x81": _Machine.call,  # NEWOBJ, which is the same for stand-ins
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}
