"""What a backend promises of its preflight, if it has one."""

import json
from collections.abc import Sequence
from pathlib import Path

from workers.engine_host import onnx_graph
from workers.engine_host.conformance.harness import BATCHES, BrokenPromise, Check, Harness, keep, weights
from workers.engine_host.preflight.verdict import Question, Verdict

STRANGE = "0.0.1"  # a version that there is not


def check_the_preflight_refuses_nothing_that_is_built(harness: Harness) -> None:
    """What a build takes is not refused before it."""
    harness.build(harness.request(harness.sources(weights(1))))
    for details in (True, False):
        (verdict,) = _verdicts(harness, (harness.backend.offered.version,), details=details)
        reasons = "; ".join(one.text for one in verdict.refused)
        keep(verdict.taken is not False, f"the preflight refuses what was built: {reasons}")


def check_the_preflight_answers_for_each_version(harness: Harness) -> None:
    """Each version that is asked about has a verdict, in the order asked, which can be shown as JSON."""
    asked = (STRANGE, harness.backend.offered.version)
    verdicts = _verdicts(harness, asked, details=True)
    answered = [one.version for one in verdicts]
    keep(answered == [*asked], f"asked about {', '.join(asked)}, it answers for {', '.join(answered)}")
    try:
        json.dumps([one.to_json() for one in verdicts], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BrokenPromise(f"the verdicts are not JSON: {error}") from error


PREFLIGHT: tuple[Check, ...] = (
    check_the_preflight_refuses_nothing_that_is_built,
    check_the_preflight_answers_for_each_version,
)


def _verdicts(harness: Harness, versions: tuple[str, ...], *, details: bool) -> Sequence[Verdict]:
    definition = onnx_graph.parse(Path(harness.definition).read_bytes())
    question = Question(versions, ({"x": BATCHES},), harness.options, details)
    return [] if harness.preflight is None else harness.preflight(definition, question)
