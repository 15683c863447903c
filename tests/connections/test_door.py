import asyncio
import socket
from dataclasses import replace

from prometheus_client import CollectorRegistry

from app.connections.crowd import Crowd
from app.connections.door import ADMITTED_AT_ONCE, Door
from app.connections.limits import LEAST_AT_THE_DOOR
from tests.connections.conftest import GENEROUS


def knock(port: int, address: str) -> socket.socket:
    client = socket.socket()
    client.bind((address, 0))
    client.connect(("127.0.0.1", port))
    return client


class Hall:
    """A door, and the addresses of those it has let in."""

    def __init__(self, connections: int = 1000) -> None:
        self.let_in: list[str] = []
        self.registry = CollectorRegistry()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        hall = self

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                hall.let_in.append(transport.get_extra_info("peername")[0])

        self._crowd = Crowd(replace(GENEROUS, connections=connections), self.registry)
        self._guest = Guest

    def open(self) -> Door:
        return Door(self._listener, self._guest, self._crowd)


def test_a_flood_keeps_no_other_client_waiting_at_the_door() -> None:
    async def scene() -> list[str]:
        hall = Hall()
        clients = [knock(hall.port, "127.0.0.2") for _ in range(200)]
        clients.append(knock(hall.port, "127.0.0.3"))
        door = hall.open()
        while "127.0.0.3" not in hall.let_in:
            await asyncio.sleep(0)
        before = hall.let_in[:]
        while len(hall.let_in) < len(clients):
            await asyncio.sleep(0)
        door.close()
        for client in clients:
            client.close()
        return before

    assert len(asyncio.run(scene())) <= 6 * ADMITTED_AT_ONCE


def test_the_oldest_of_the_largest_crowd_at_the_door_is_told_to_come_again() -> None:
    async def scene() -> tuple[bytes, list[str], float | None]:
        hall = Hall(connections=20)
        clients = [knock(hall.port, "127.0.0.2") for _ in range(100)]
        other = knock(hall.port, "127.0.0.3")
        door = hall.open()
        while "127.0.0.3" not in hall.let_in:
            await asyncio.sleep(0)
        refused = clients[ADMITTED_AT_ONCE].recv(4096)  # the oldest of those that were not let in at once
        door.close()
        for client in (*clients, other):
            client.close()
        return (
            refused,
            hall.let_in,
            hall.registry.get_sample_value("enginesmith_connections_ended_total", {"code": "crowded_out"}),
        )

    refused, let_in, ended = asyncio.run(scene())
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"crowded_out" in refused
    assert let_in.count("127.0.0.3") == 1
    assert ended is not None
    assert ended >= 100 - ADMITTED_AT_ONCE - LEAST_AT_THE_DOOR


def test_a_closed_door_lets_nobody_in() -> None:
    async def scene() -> list[str]:
        hall = Hall()
        door = hall.open()
        clients = [knock(hall.port, "127.0.0.2") for _ in range(3)]
        door.close()
        await door.wait_closed()
        await asyncio.sleep(0.01)
        for client in clients:
            client.close()
        return hall.let_in

    assert asyncio.run(scene()) == []
