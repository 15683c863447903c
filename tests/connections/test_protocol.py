import asyncio
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from app.connections.crowd import Crowd
from app.connections.protocol import LARGE_READ, Crowded, LimitedProtocol
from tests.connections.conftest import GENEROUS, Application

GET = b"GET /count HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
FAST = 0.1  # seconds; the tests' checks come every 0.02 s
Serve = Callable[..., Any]


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def again(action: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        action()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code(answer: bytes) -> str:
    found = re.search(rb'"code":"(\w+)"', answer)
    return found[1].decode() if found else ""


def test_usual_requests_are_answered_on_one_connection(serve: Serve) -> None:
    client = serve().connect()
    for _ in range(3):
        client.send(POST % (b"/count", 5) + b"hello")
        assert client.answer().endswith(b"\r\n\r\n5")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /count HTTP/1.1\r\nlong: " + b"x" * 600_000,
        b"GET /count HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"GET /count?" + b"x" * 600_000,
        b"GET /count HTTP/1.1\r\n" + b"a:\r\n" * 300 + b"\r\n",
        b"\r\n" * 300_000,
        b"POST /count HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ntrailer: " + b"x" * 600_000,
        b"POST /count HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 100_000,
    ],
    ids=["value", "headers", "path", "empty headers", "no request", "trailer", "trailers"],
)
def test_headers_without_end_are_refused_while_the_client_still_sends(serve: Serve, head: bytes) -> None:
    server = serve()
    client = server.connect(head)
    answer = client.rest()
    assert (status(answer), code(answer)) == (431, "headers_too_large")
    assert server.ended("headers_too_large") == 1


def test_headers_up_to_the_limit_are_taken_in_whatever_pieces_they_come(serve: Serve) -> None:
    client = serve(header_bytes=8192).connect()
    client.send(b"GET /count HTTP/1.1\r\n")
    for _ in range(7):
        client.send(b"name: " + b"x" * 1000 + b"\r\n")
        time.sleep(0.005)  # so that they arrive one by one
    client.send(b"\r\n")
    assert status(client.answer()) == 200


@pytest.mark.parametrize("sent", [b"", b"GET /count HT", b"GET /count HTTP/1.1\r\nhost: x\r\n"])
def test_a_request_that_is_begun_and_not_finished_ends(serve: Serve, sent: bytes) -> None:
    server = serve(header_s=FAST)
    answer = server.connect(sent).rest()
    assert code(answer) == ("headers_too_slow" if sent else "")
    assert server.application.requests == 0


def test_headers_that_drip_do_not_earn_more_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.connections.protocol.LINGER_S", FAST)
    client = serve(header_s=0.3).connect(b"GET /count HTTP/1.1\r\n")

    def drip() -> None:
        client.send(b"a: b\r\n")
        time.sleep(0.01)

    with pytest.raises(OSError, match=r"."):
        again(drip)


def test_a_connection_without_requests_is_closed(serve: Serve) -> None:
    client = serve(keep_alive_s=FAST).connect(GET)
    assert status(client.answer()) == 200
    assert client.rest() == b""


@pytest.mark.parametrize(
    "head", [POST % (b"/count", 1000), b"POST /count HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_a_body_that_stops_arriving_ends_the_request(serve: Serve, head: bytes) -> None:
    server = serve(slow_s=FAST)
    answer = server.connect(head + b"5\r\nhello\r\n").rest()
    assert (status(answer), code(answer)) == (408, "body_too_slow")
    until(lambda: server.application.left == ["/count"])


def test_a_body_below_the_rate_is_cut_off_and_one_above_it_is_not(serve: Serve) -> None:
    server = serve(slow_s=0.3, least_rate=100_000)
    slow = server.connect(POST % (b"/count", 10_000))
    fast = server.connect(POST % (b"/count", 400_000))
    for _ in range(100):
        if not server.ended("body_too_slow"):
            slow.send(b"x")
        fast.send(bytes(4000))
        time.sleep(0.01)
    assert status(fast.answer()) == 200
    assert code(slow.rest()) == "body_too_slow"


def test_a_client_that_waits_for_100_continue_is_not_slow(serve: Serve) -> None:
    server = serve(slow_s=FAST)
    head = b"POST /wait HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    client = server.connect(head)
    time.sleep(3 * FAST)
    server.call(server.application.let_go.set)
    assert status(client.answer()) == 200


def test_answers_that_take_long_to_make_are_waited_for(serve: Serve) -> None:
    server = serve(header_s=FAST, keep_alive_s=FAST, slow_s=FAST)
    client = server.connect(GET.replace(b"/count", b"/wait"))
    stream = server.connect(GET.replace(b"/count", b"/stream"))
    time.sleep(4 * FAST)
    server.call(server.application.let_go.set)
    assert status(client.answer()) == 200
    assert server.application.left == []
    stream.socket.close()
    until(lambda: server.application.left == ["/stream"])


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(serve: Serve) -> None:
    server = serve(slow_s=FAST)
    server.connect(GET.replace(b"/count", b"/large"), receive_buffer=4096)
    until(lambda: server.application.left == ["/large"])
    assert server.ended("answer_taken_too_slowly") == 1


def test_a_client_that_takes_its_answer_fast_enough_is_served_on(serve: Serve) -> None:
    server = serve(slow_s=FAST, least_rate=1000)
    client = server.connect(GET.replace(b"/count", b"/large"), receive_buffer=4096)
    for _ in range(60):
        assert client.socket.recv(100_000)
        time.sleep(0.01)
    assert server.ended("answer_taken_too_slowly") == 0


def test_the_rest_of_a_body_is_not_received_for_ever_after_an_error(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.connections.protocol.UNREAD_S", FAST)
    server = serve()
    client = server.connect(POST % (b"/refuse", 10**12))
    with pytest.raises(OSError, match=r"."):
        again(lambda: client.send(bytes(65536)))
    assert server.ended("unread_body") == 1


def test_pipelined_requests_are_answered_in_order_up_to_a_number(serve: Serve) -> None:
    server = serve()
    asked = b"".join(POST % (b"/count", n % 10) + bytes(n % 10) for n in range(5000))
    answers = server.connect(asked).rest()
    lengths = re.findall(rb"\r\n\r\n(\d)", answers)
    assert lengths == [str(n % 10).encode() for n in range(len(lengths))]
    assert len(lengths) == server.application.requests == 17


def test_a_stream_whose_client_has_pipelined_another_request_ends_with_its_connection(serve: Serve) -> None:
    server = serve()
    client = server.connect(GET.replace(b"/count", b"/stream") + GET)
    until(lambda: server.application.requests == 1)
    client.socket.close()
    until(lambda: server.application.left == ["/stream"])


def test_what_is_no_http_is_answered_with_a_problem(serve: Serve) -> None:
    answer = serve().connect(b"\x16\x03\x01 hello\r\n\r\n").rest()
    assert (status(answer), code(answer)) == (400, "malformed_request")


def test_what_follows_a_request_does_not_spoil_its_answer(serve: Serve) -> None:
    server = serve()
    client = server.connect(GET.replace(b"/count", b"/wait") + b"\x16\x03\x01 no http\r\n\r\n")
    until(lambda: server.ended("malformed_request") == 1)
    server.call(server.application.let_go.set)
    answer = client.rest()
    assert answer.endswith(b"\r\n\r\ndone")


def test_a_flood_of_half_requests_locks_nobody_out(serve: Serve) -> None:
    server = serve(connections=20)
    flood = [server.connect(b"GET /count HTTP/1.1\r\n") for _ in range(100)]
    assert status(server.connect(GET).answer()) == 200
    until(lambda: server.ended("crowded_out") >= 81)  # inside or at the door
    flood[-1].send(b"\r\n")
    assert status(flood[-1].answer()) == 200


def test_a_flood_of_half_bodies_gives_way_once_it_stalls(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.connections.protocol.STALL_S", FAST)
    monkeypatch.setattr("app.connections.crowd.STALL_S", FAST)
    server = serve(connections=20)
    flood = [server.connect(POST % (b"/count", 100) + b"x") for _ in range(20)]
    until(lambda: server.application.requests == 20)
    until(lambda: status(server.connect(GET).answer()) == 200)
    assert code(flood[0].rest()) == "crowded_out"
    until(lambda: server.application.left == ["/count"])


def test_work_in_progress_gives_way_to_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.connections.protocol.STALL_S", FAST)
    monkeypatch.setattr("app.connections.crowd.STALL_S", FAST)
    server = serve(connections=3)
    waiting = [server.connect(GET.replace(b"/count", b"/wait")) for _ in range(3)]
    until(lambda: server.application.requests == 3)
    time.sleep(2 * FAST)
    refused = server.connect(GET).rest()
    assert (status(refused), code(refused)) == (503, "too_many_connections")
    server.call(server.application.let_go.set)
    assert [status(client.answer()) for client in waiting] == [200] * 3


def test_one_address_has_a_limit_of_its_own(serve: Serve) -> None:
    server = serve(per_address=2)
    idle = server.connect(GET)
    idle.answer()
    waiting = server.connect(GET.replace(b"/count", b"/wait"))
    until(lambda: server.application.requests == 2)
    assert status(server.connect(GET).answer()) == 200
    assert idle.rest() == b""
    server.call(server.application.let_go.set)
    assert status(waiting.answer()) == 200


def test_what_nobody_reads_is_received_once_with_each_turn_of_the_loop() -> None:
    """By itself uvloop would read up to 8 MiB from one connection before any other has its turn."""
    head = b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % 2**40
    reads: list[tuple[int, bool]] = []
    application = Application()

    async def receive() -> None:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(application, http=LimitedProtocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state = Crowded(Crowd(GENEROUS, CollectorRegistry()))
        all_read = asyncio.Event()

        class Noting(LimitedProtocol):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                reads.append((len(data), self.transport.is_reading()))
                if sum(length for length, _ in reads) == len(head) + 2**24:
                    all_read.set()

        ours, theirs = socket.socketpair()
        theirs.sendall(head)
        await loop.connect_accepted_socket(lambda: Noting(config, state, {}), ours)
        with theirs:
            await asyncio.to_thread(theirs.sendall, bytes(2**24))
            await all_read.wait()

    uvloop.run(receive())
    large = [is_reading for length, is_reading in reads if length >= LARGE_READ]
    assert large
    assert not any(large)
