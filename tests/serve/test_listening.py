import socket
from collections.abc import Iterator

import pytest

from app.serve.errors import CannotStart
from app.serve.listening import inherited, listen, url_of


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_zero_picks_a_free_port_and_the_url_names_it() -> None:
    with listen("127.0.0.1", 0, allow_anonymous=False) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_in_use_is_named_with_the_remedy(taken: int) -> None:
    with pytest.raises(CannotStart, match=f"Port {taken} of 127.0.0.1 is in use.*--port") as raised:
        listen("127.0.0.1", taken, allow_anonymous=False)
    assert raised.value.code == "port_in_use"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_a_loopback_address_needs_no_permission(host: str) -> None:
    listen(host, 0, allow_anonymous=False).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])  # noqa: S104 - what must be refused
def test_an_address_others_reach_is_refused_without_permission_in_so_many_words(host: str) -> None:
    with pytest.raises(CannotStart, match=r"--allow-anonymous.*ENGINESMITH_ALLOW_ANONYMOUS") as raised:
        listen(host, 0, allow_anonymous=False)
    assert raised.value.code == "anonymous_not_allowed"


def test_with_permission_every_address_is_listened_on_and_the_url_is_one_this_machine_reaches() -> None:
    with listen("0.0.0.0", 0, allow_anonymous=True) as listener:  # noqa: S104 - what the permission is for
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_a_clear_error(host: str) -> None:
    with pytest.raises(CannotStart, match="--host") as raised:
        listen(host, 0, allow_anonymous=True)
    assert raised.value.code == "cannot_listen"


def test_an_inherited_socket_goes_on_listening_on_the_same_port() -> None:
    given = listen("127.0.0.1", 0, allow_anonymous=False)
    port = given.getsockname()[1]
    with inherited(given.detach(), allow_anonymous=False) as taken_over:
        assert taken_over.getsockname()[1] == port


def test_an_inherited_socket_needs_the_same_permission() -> None:
    with (
        listen("0.0.0.0", 0, allow_anonymous=True) as given,  # noqa: S104 - the case at hand
        pytest.raises(CannotStart, match="--allow-anonymous"),
    ):
        inherited(given.detach(), allow_anonymous=False)


def test_a_descriptor_that_is_no_socket_is_a_clear_error() -> None:
    with pytest.raises(CannotStart, match="--fd 987 is not a socket"):
        inherited(987, allow_anonymous=False)
