"""How the parent's requests go to the child: as pickles, because the child trusts its parent.

The child first sends one `Hello`, or the `BackendError` for which it ends. Then it answers each `Request` of the parent
with any number of messages and one `Reply`. These are no pickles, see `replies` and `hearing`.

A request names hundreds of parameters, and nearly all of them are the same as in the request before. So a parameter's
source is sent whole once, and as a number from then on. At each end it stays one object.
"""

import pickle
from io import BytesIO
from typing import Any

from workers.channel.messages import ParameterSource, Request

MAX_SOURCES = 50_000  # kept at both ends, about a kilobyte each; if a request has more than half as many, more are kept


class RequestWriter:
    """Pickles the requests to one child, in the order in which it reads them."""

    def __init__(self, max_sources: int = MAX_SOURCES) -> None:
        self._max_sources = max_sources
        self._largest = 0  # the sources in the largest request
        self._sent: dict[int, tuple[int, ParameterSource]] = {}  # by id(), which no other object has while it is here

    def write(self, request: Request) -> bytes:
        """Return a request's pickle."""
        if len(self._sent) > max(self._max_sources, 2 * self._largest):
            self._sent.clear()
        buffer = BytesIO()
        pickler = _Pickler(buffer, self._sent)
        try:
            pickler.dump(request)
        except BaseException:
            self._sent.clear()  # the child never receives the sources that got a number here
            raise
        self._largest = max(self._largest, pickler.count)
        return buffer.getvalue()


class RequestReader:
    """Reads what a `RequestWriter` wrote."""

    def __init__(self) -> None:
        self._received: list[ParameterSource] = []

    def read(self, pickled: bytes) -> Request:
        """Return the request."""
        request: Request = _Unpickler(BytesIO(pickled), self._received).load()
        return request


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, sent: dict[int, tuple[int, ParameterSource]]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._sent = sent
        self.count = 0

    def persistent_id(self, one: Any) -> Any:  # noqa: ANN401 - any object in a request
        """Return a source's number if it has one, else the whole source with its new number.

        Number 0 tells the reader to forget all sources that it has.
        """
        if type(one) is not ParameterSource:
            return None
        self.count += 1
        known = self._sent.get(id(one))
        if known is not None:
            return known[0]
        number = len(self._sent)
        self._sent[id(one)] = number, one
        return number, one.binding, one.tensors


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO, received: list[ParameterSource]) -> None:
        super().__init__(file)
        self._received = received

    def persistent_load(self, said: Any) -> ParameterSource:  # noqa: ANN401 - as `persistent_id` returns it
        if isinstance(said, int):
            return self._received[said]
        number, binding, tensors = said
        if number == 0:
            self._received.clear()
        source = ParameterSource(binding, tensors)
        self._received.append(source)
        return source
