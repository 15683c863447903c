import pytest

from app.http.address import address_of


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        (("192.0.2.7", 4711), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("unknown", 0), "unknown"),
        (("x" * 60_000, 0), "x" * 100),  # thousands of them are remembered
    ],
)
def test_one_client_has_one_address_however_many_the_protocol_gives_it(
    client: tuple[str, int] | None, address: str
) -> None:
    assert address_of(client) == address
