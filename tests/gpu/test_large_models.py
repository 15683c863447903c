"""Models whose weights no protobuf message holds: 2 GiB is its limit, and what 31 bits count."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from app.definitions.parameter import InputSpec
from tests.gpu.card import GIB, Array, Card
from tests.gpu.samples import rows
from tests.workers.networks import Network, bound, checkpoint, network_of

SIDE = 16384  # of a table, 512 MiB in F16
COLUMNS = 64


def embeddings(path: Path) -> Network:
    """y = the sum of four tables' rows, projected: the one small weight lies behind all the others."""
    tables = [f"{index}.table" for index in range(4)]
    nodes = [helper.make_node("Gather", [table, "ids"], [f"{table}.row"]) for table in tables]
    nodes += [
        helper.make_node("Add", ["0.table.row", "1.table.row"], ["first"]),
        helper.make_node("Add", ["2.table.row", "3.table.row"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("MatMul", ["sum", "projection"], ["y"]),
    ]
    parameters: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(tables, ("F16", (SIDE, SIDE)))
    parameters["projection"] = ("F16", (SIDE, COLUMNS))
    return network_of(path, nodes, parameters, (InputSpec("ids", "I64", ("batch",), SIDE),), {"y": "F16"})


def projection(step: int) -> Array:
    """Few ones, so that all sums are integers that F16 holds."""
    values = np.zeros((SIDE, COLUMNS), np.float16)
    values[np.arange(COLUMNS) * step, np.arange(COLUMNS)] = 1
    values[-1 - np.arange(COLUMNS) * step, np.arange(COLUMNS)] = 1
    return values


@pytest.mark.timeout(400)  # gigabytes are written, compiled, written and read
def test_a_model_over_two_gib_is_built_refitted_and_loaded_again(card: Card, tmp_path: Path) -> None:
    network = embeddings(tmp_path / "net.onnx")
    random = np.random.default_rng(1).integers(-2, 3, (SIDE, SIDE), np.int8).astype(np.float16)
    tables = {f"{index}.table": np.roll(random, index, axis=0) for index in range(4)}
    first, second = projection(3), projection(5)
    stored = checkpoint(tmp_path / "w.safetensors", tables | {"projection": first})
    other = stored | checkpoint(tmp_path / "other.safetensors", {"projection": second})
    assert stored["projection"].offset > 2 * GIB
    ids = np.array([SIDE - 1])
    row = sum(table[ids].astype(np.float32) for table in tables.values())
    expected = [(row @ values.astype(np.float32)).astype(np.float16) for values in (first, second)]
    del random, tables

    built, engine = card.build(network, bound(network, stored), (rows(network),))
    refitted, lazy = card.refit(engine, bound(network, other), lazily=True)

    assert built.nbytes > 2 * GIB
    assert (refitted.changed, refitted.plan) == (1, None)
    np.testing.assert_array_equal(card.run(lazy, {"ids": ids})["y"], expected[1])
    card.restart()
    for one, values in ((engine, expected[0]), (lazy, expected[1])):
        np.testing.assert_array_equal(card.run(one, {"ids": ids})["y"], values)
        found = card.verify(one, "finite")
        assert found.ok, found.detail
