from app.json_digest import json_digest


def test_digests_stay_those_that_databases_hold() -> None:
    value = {"b": [1, 2.5, 1e-05, 1e16, None, True], "a": {"é": "\u2028", "\U00010000": 2**60, "\uffff": "x"}}
    assert json_digest(value) == "sha256:cab8a79d9d7015f3887ad1263e40a008a78445db9f8527f65a4e3bede69023c4"


def test_the_order_of_keys_does_not_count() -> None:
    assert json_digest({"a": 1, "b": {"c": 2, "d": 3}}) == json_digest({"b": {"d": 3, "c": 2}, "a": 1})
