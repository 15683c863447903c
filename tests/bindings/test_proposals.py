from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.bindings import embedded
from tests.bindings.checkpoints import Array, Arrays, Bench

RANDOM = np.random.default_rng(0)
LAYERS = range(3)
TURN = {"op": "transpose", "perm": [1, 0]}


def matrix(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def network() -> dict[str, Array]:
    """Parameters as many exports name them; no matrix is square."""
    made = {"embeddings.word.weight": matrix(11, 4)}
    for i in LAYERS:
        made[f"layer.{i}.attn.qkv.weight"] = matrix(12, 4)
        made[f"layer.{i}.attn.qkv.bias"] = matrix(12)
        made[f"layer.{i}.mlp.up.weight"] = matrix(16, 4)
        made[f"layer.{i}.mlp.down.weight"] = matrix(4, 16)
        made[f"layer.{i}.norm.weight"] = matrix(4)
        made[f"layer.{i}.norm.bias"] = matrix(4)
    return made


def older(name: str) -> str:
    return name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")


def wrapped(name: str) -> str:
    is_adapted = ".attn." in name
    inner = name.replace("qkv.", "qkv.base_layer.") if is_adapted else name
    return f"base_model.model.{inner}"


SAVED_AS: dict[str, Callable[[str, Array], tuple[str, Array]]] = {
    "data parallel": lambda name, array: (f"module.{name}", array),
    "compiled": lambda name, array: (f"_orig_mod.{name}", array),
    "with a head": lambda name, array: (f"bert.{name}", array),
    "both": lambda name, array: (f"module.model.{name}", array),
    "without the first prefix": lambda name, array: (name.removeprefix("layer."), array),
    "gamma and beta": lambda name, array: (older(name), array),
    "gamma and beta with a head": lambda name, array: (f"bert.{older(name)}", array),
    "adapted": lambda name, array: (wrapped(name), array),
    "transposed": lambda name, array: (name, array.T if "mlp" in name else array),
    "transposed with a head": lambda name, array: (f"transformer.{name}", array.T if "mlp" in name else array),
    "halves": lambda name, array: (f"model.{name}", array.astype(np.float16)),
    "a convolution": lambda name, array: (name, array.reshape(*array.shape, 1) if "mlp" in name else array),
}

KEPT_AS = {"halves": np.float16}  # the others as float32


@pytest.mark.parametrize("saved", SAVED_AS)
def test_following_the_proposals_gives_every_parameter_its_own_values(saved: str) -> None:
    parameters = network()
    checkpoint = dict(SAVED_AS[saved](name, array) for name, array in parameters.items())
    bench = Bench(parameters, {name: np.ascontiguousarray(array) for name, array in checkpoint.items()})
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert (report.ok, report.warnings, proposed.unclear) == (True, (), ())
    assert len(rules) <= 7  # not one for each parameter
    assert all(proposal.evidence for proposal in proposed.proposals)
    for name, value in bench.bound(report).items():
        np.testing.assert_array_equal(value, parameters[name].astype(KEPT_AS.get(saved, np.float32)), err_msg=name)


@pytest.mark.parametrize("saved", [name for name in SAVED_AS if name != "halves"])
def test_a_check_tells_the_same_rules_in_the_problems_themselves(saved: str) -> None:
    parameters = network()
    checkpoint = dict(SAVED_AS[saved](name, array) for name, array in parameters.items())
    bench = Bench(parameters, {name: np.ascontiguousarray(array) for name, array in checkpoint.items()})
    report = bench.check()
    assert not report.ok
    rules = [dict(proposal.rule) for proposal in report.proposed.proposals]
    assert bench.check(*rules).ok
    missing = {problem.parameter for problem in report.problems if problem.parameter is not None}
    assert missing == {name for proposal in report.proposed.proposals for name in proposal.parameters}


def test_what_the_exporter_renamed_is_found_by_its_shape() -> None:
    weight = matrix(3, 4)
    bench = Bench({"onnx::MatMul_11": weight.T, "fc.bias": matrix(3)}, {"fc.weight": weight, "fc.bias": matrix(3)})
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert rules == [{"parameter": "onnx::MatMul_11", "tensors": ["fc.weight"], "transforms": [TURN]}]
    assert "torch.onnx.export" in " ".join(proposed.proposals[0].evidence)
    np.testing.assert_array_equal(bench.bound(report)["onnx::MatMul_11"], weight.T)


def test_two_that_fit_two_are_said_and_not_guessed() -> None:
    bench = Bench(
        {"onnx::MatMul_1": matrix(4, 3), "onnx::MatMul_2": matrix(4, 3)},
        {"a.weight": matrix(3, 4), "b.weight": matrix(3, 4)},
    )
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert (rules, report.ok) == ([], False)
    (doubt,) = proposed.unclear
    assert doubt.parameters == ("onnx::MatMul_1", "onnx::MatMul_2")
    assert doubt.tensors == ("a.weight", "b.weight")
    assert "cannot be told" in report.problems[0].detail
    assert "ignore" not in " ".join(problem.detail for problem in report.problems)


def test_one_that_fits_two_is_said_and_not_guessed() -> None:
    bench = Bench({"a": matrix(4, 3)}, {"x.weight": matrix(4, 3), "y.weight": matrix(4, 3)})
    rules, proposed, _ = bench.pair.propose([], bench.read)
    assert (rules, len(proposed.unclear)) == ([], 1)


def test_a_bias_is_no_weight_although_it_fits() -> None:
    bench = Bench({"a.bias": matrix(4)}, {"z.weight": matrix(4)})
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert (rules, proposed.unclear, report.ok) == ([], (), False)


def test_of_two_namesakes_the_one_under_the_commonest_prefix_is_meant() -> None:
    checkpoint = {f"encoder.{name}": array for name, array in network().items()}
    checkpoint["decoder.layer.0.mlp.up.weight"] = matrix(16, 4)
    bench = Bench(network(), checkpoint)
    rules, _, report = bench.pair.propose([{"ignore": "decoder.*"}], bench.read)
    assert report.ok
    assert rules[:-1] == [{"parameter": "(.+)", "tensors": [r"encoder.\1"]}]


def test_a_namesake_under_another_prefix_alone_is_not_taken() -> None:
    bench = Bench(
        {"decoder.attn.weight": matrix(4, 3)}, {"encoder.attn.weight": matrix(4, 3), "x.attn.weight": matrix(4, 3)}
    )
    rules, proposed, _ = bench.pair.propose([], bench.read)
    assert rules == []
    assert proposed.unclear[0].tensors == ("encoder.attn.weight", "x.attn.weight")


class TestSquares:
    """Matrices whose layout no shape tells."""

    def test_is_said_where_the_exporter_renamed_one(self) -> None:
        weight = matrix(20, 20)
        bench = Bench({"onnx::MatMul_1": weight.T}, {"fc.weight": weight})
        rules, proposed, report = bench.pair.propose([], bench.read)
        assert rules[0]["transforms"] == [TURN]  # as the exporter does
        assert report.ok
        assert "square" in proposed.unclear[0].detail
        assert "square" in bench.check().problems[0].detail

    def test_is_said_where_others_of_the_checkpoint_lie_otherwise(self) -> None:
        parameters = {"h.0.fc.weight": matrix(16, 4), "h.0.proj.weight": matrix(4, 4), "h.0.norm.weight": matrix(4)}
        checkpoint = {name: np.ascontiguousarray(array.T) for name, array in parameters.items()}
        bench = Bench(parameters, checkpoint)
        rules, proposed, report = bench.pair.propose([], bench.read)
        assert rules == [{"parameter": r"h\.0\.fc\.weight", "tensors": ["h.0.fc.weight"], "transforms": [TURN]}]
        assert proposed.unclear[0].parameters == ("h.0.proj.weight",)
        assert [warning.rule for warning in report.warnings] == [-1]
        assert "h.0.proj.weight is taken as it lies" in report.warnings[0].detail

    def test_is_said_where_nothing_but_tables_and_squares_is_renamed(self) -> None:
        parameters = {"embeddings.weight": matrix(9, 4), "fc.weight": matrix(4, 4), "fc.bias": matrix(4)}
        checkpoint = {f"model.{name}": array for name, array in parameters.items()}
        _, proposed, report = Bench(parameters, checkpoint).pair.propose([], Bench(parameters, checkpoint).read)
        assert report.ok
        assert [doubt.parameters for doubt in proposed.unclear] == [("fc.weight",)]

    def test_is_told_by_other_matrices_that_lie_as_they_should(self) -> None:
        parameters = {"fc.weight": matrix(4, 4), "up.weight": matrix(16, 4)}
        checkpoint = {f"model.{name}": array for name, array in parameters.items()}
        bench = Bench(parameters, checkpoint)
        rules, proposed, _ = bench.pair.propose([], bench.read)
        assert rules == [{"parameter": "(.+)", "tensors": [r"model.\1"]}]
        assert proposed.unclear == ()

    def test_under_its_own_name_is_not_doubted(self) -> None:
        scale = np.array(0.5, np.float32)
        bench = Bench({"fc.weight": matrix(4, 4)}, {"fc.weight": np.zeros((4, 4), np.int8), "fc.weight_scale": scale})
        _, proposed, report = bench.pair.propose([], bench.read)
        assert (report.ok, proposed.unclear) == (True, ())

    @pytest.mark.parametrize("noise", [0.0, 0.1])
    def test_is_told_by_the_values_that_the_definition_came_with(self, noise: float) -> None:
        parameters = {"fc.weight": matrix(64, 24), "proj.weight": matrix(24, 24), "tail.weight": matrix(24, 24)}
        trained = {name: array + noise * matrix(*array.shape) for name, array in parameters.items()}
        checkpoint = {name: np.ascontiguousarray(array.T) for name, array in trained.items()}
        bench = Bench(parameters, checkpoint, embedded=True)
        _, proposed, report = bench.pair.propose([], bench.read)
        assert (report.ok, proposed.unclear) == (True, ())
        for name, value in bench.bound(report).items():
            np.testing.assert_array_equal(value, trained[name])

    def test_is_found_even_where_everything_binds(self) -> None:
        parameters = {"proj.weight": matrix(24, 24)}
        bench = Bench(parameters, {"proj.weight": np.ascontiguousarray(parameters["proj.weight"].T)}, embedded=True)
        rules, _, report = bench.pair.propose([], bench.read)
        assert rules == [{"parameter": r"proj\.weight", "tensors": ["proj.weight"], "transforms": [TURN]}]
        np.testing.assert_array_equal(bench.bound(report)["proj.weight"], parameters["proj.weight"])


class TestValues:
    """Tensors that are told by the values which the definition came with."""

    def renamed(self, noise: float = 0.0) -> tuple[Bench, Arrays]:
        """Matrices all of one shape, exported under names that say nothing."""
        trained = {f"layer.{i}.{part}.weight": matrix(24, 24) for i in LAYERS for part in ("query", "key", "value")}
        first = {f"onnx::MatMul_{number}": array.T for number, array in enumerate(trained.values())}
        now = {name: array + noise * matrix(24, 24) for name, array in trained.items()}
        backwards = dict(reversed(now.items()))
        return Bench({name: np.ascontiguousarray(a) for name, a in first.items()}, backwards, embedded=True), now

    @pytest.mark.parametrize("noise", [0.0, 0.2])
    def test_of_many_of_one_shape_each_is_found(self, noise: float) -> None:
        bench, now = self.renamed(noise)
        _, proposed, report = bench.pair.propose([], bench.read)
        assert (report.ok, proposed.unclear) == (True, ())
        for number, array in enumerate(now.values()):
            np.testing.assert_array_equal(bench.bound(report)[f"onnx::MatMul_{number}"], array.T)

    def test_values_that_say_nothing_are_not_gone_by(self) -> None:
        bench, _ = self.renamed(noise=5.0)
        rules, proposed, report = bench.pair.propose([], bench.read)
        assert (rules, report.ok) == ([], False)
        assert len(proposed.unclear[0].tensors) == 9

    def test_equal_bytes_need_no_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "PROPOSING_S", -1.0)
        first = {"a": matrix(4, 3), "b": matrix(4, 3)}
        bench = Bench(first, {"y": first["a"], "x": first["b"]}, embedded=True)
        _, proposed, report = bench.pair.propose([], bench.read)
        assert (report.ok, proposed.unclear) == (True, ())
        for name, value in bench.bound(report).items():
            np.testing.assert_array_equal(value, first[name])

    def test_without_time_to_read_nothing_is_guessed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "PROPOSING_S", -1.0)
        bench, _ = self.renamed()
        assert bench.pair.propose([], bench.read)[0] == []

    def test_a_proposal_reads_on_where_a_check_would_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "READING_S", -1.0)
        bench, _ = self.renamed()
        assert bench.pair.propose([], bench.read)[2].ok

    def test_rows_that_are_too_long_are_read_piece_by_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "SPAN_BYTES", 64)
        bench, now = self.renamed(noise=0.1)
        _, _, report = bench.pair.propose([], bench.read)
        for number, array in enumerate(now.values()):
            np.testing.assert_array_equal(bench.bound(report)[f"onnx::MatMul_{number}"], array.T)

    def test_equal_values_of_two_are_not_told_apart(self) -> None:
        ones = np.ones((6,), np.float32)
        bench = Bench({"a": ones, "b": ones}, {"x": ones, "y": ones}, embedded=True)
        rules, proposed, _ = bench.pair.propose([], bench.read)
        assert (rules, len(proposed.unclear)) == ([], 1)


F8 = ml_dtypes.float8_e4m3fn
QUANTISED: dict[str, tuple[dict[str, Any], Callable[[Array, Arrays], Array]]] = {
    "a scale for all": ({"fc.weight_scale": np.array(0.5, np.float32)}, lambda q, s: q * s["fc.weight_scale"]),
    "a scale per row": (
        {"fc.weight_scale": matrix(300, 1)},
        lambda q, s: q * s["fc.weight_scale"],
    ),
    "a flat scale per row": ({"fc.scale": matrix(300)}, lambda q, s: q * s["fc.scale"][:, None]),
    "blocks": (
        {"fc.weight_scale_inv": matrix(3, 2)},
        lambda q, s: q * s["fc.weight_scale_inv"].repeat(128, 0).repeat(128, 1)[:300, :200],
    ),
    "groups": (
        {"fc.scales": matrix(300, 4), "fc.zeros": np.zeros((300, 4), np.int8)},
        lambda q, s: q * s["fc.scales"].repeat(50, 1),
    ),
}


@pytest.mark.parametrize("dtype", [F8, np.int8])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_numbers_are_dequantised_by_the_scale_beside_them(kind: str, dtype: Any) -> None:  # noqa: ANN401 - dtypes
    scales, dequantised = QUANTISED[kind]
    numbers = RANDOM.integers(-8, 8, (300, 200)).astype(dtype)
    bench = Bench({"fc.weight": matrix(300, 200)}, {"fc.weight": numbers, **scales})
    report = bench.check()
    assert not report.ok
    details = " ".join(problem.detail for problem in report.problems)
    assert '"op": "dequantize"' in details
    assert "ignore" not in details
    _, proposed, report = bench.pair.propose([], bench.read)
    assert (report.ok, proposed.unclear) == (True, ())
    expected = dequantised(numbers.astype(np.float32), scales)
    np.testing.assert_array_equal(bench.bound(report)["fc.weight"], expected)


def test_a_scale_that_could_be_of_either_axis_is_not_guessed() -> None:
    numbers = np.zeros((4, 4), np.int8)
    bench = Bench({"fc.weight": matrix(4, 4)}, {"fc.weight": numbers, "fc.scale": matrix(4)})
    rules, _, report = bench.pair.propose([], bench.read)
    assert (rules, report.ok) == ([], False)
    assert "its axis" in report.problems[0].detail


def test_the_clients_rules_stay_behind_the_proposed_ones() -> None:
    mine = [{"ignore": "extra"}]
    bench = Bench({"a.w": matrix(2, 3)}, {"m.a.w": matrix(2, 3), "extra": matrix(1)})
    rules, _, report = bench.pair.propose(mine, bench.read)
    assert rules == [{"parameter": r"a\.w", "tensors": ["m.a.w"]}, *mine]
    assert report.ok


def test_few_values_are_alike_by_chance() -> None:
    mean, variance = np.array([1, 2, 3], np.float32), np.array([3, 0, -1], np.float32)
    bench = Bench({"bn.a": variance, "bn.b": mean}, {"x": variance * 0.9 + 0.1, "y": mean + 0.2}, embedded=True)
    rules, proposed, _ = bench.pair.propose([], bench.read)
    assert rules == []
    assert "It cannot be told" in proposed.unclear[0].detail


def test_moving_statistics_are_running_ones() -> None:
    names = {"moving_mean": "running_mean", "moving_variance": "running_var", "gamma": "weight", "beta": "bias"}
    saved = {f"bn.{name}": matrix(3) for name in names}
    bench = Bench({f"bn.{ours}": matrix(3) for ours in names.values()}, saved)
    rules, _, report = bench.pair.propose([], bench.read)
    assert report.ok
    bound = bench.bound(bench.check(*rules))
    assert all((bound[f"bn.{ours}"] == saved[f"bn.{theirs}"]).all() for theirs, ours in names.items())
