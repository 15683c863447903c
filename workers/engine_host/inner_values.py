"""Where inside a graph the change of a parameter shows if no output shows it, and why no output does.

An output behind a steep sigmoid hides what a value in front of it shows. And some parameters have no effect at all,
such as a bias of attention's keys: it adds the same to all scores of a query, and softmax takes that away.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto

from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError, Sight
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays, ShowsInnerValues
from workers.engine_host.comparison import Comparison
from workers.engine_host.deviations import LARGE, SMALL, Signs, changed, pattern
from workers.engine_host.references import Reference
from workers.engine_host.tensors import Array, dtype_name

NEAREST = 32  # of the values that are computed from a parameter, that many are looked at
MOST = 512  # of all parameters together
MOST_COMPARED = 16  # inner values, each of which every verification compares
COMPARED_DTYPES = {"F32", "F64"}  # what a runtime computes of smaller floats it may do in others


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the change of one parameter shows: in the values `shows`, of 1%. `reason` says why in no output.

    `is_idle` says that no output depends on the parameter.
    """

    shows: frozenset[str]
    reason: str
    is_idle: bool


def look_inside(
    reference: Reference,
    engine: object,
    inputs: Arrays,
    comparison: Comparison,
    sight: Sight,
    seconds: float,
    others: Sequence[Arrays] = (),
) -> Sight:
    """Return what is seen if inner values are compared as well, as far as `engine` shows any, and why the rest is not.

    Looks at those parameters that `sight` has as unseen, for as many seconds. That no output depends on one has to hold
    with the inputs `others` as well.
    """
    started = time.monotonic()
    if not sight.unseen or seconds <= 0:
        return sight
    graph = onnx_graph.parse(Path(reference.engine.definition).read_bytes()).graph
    readers = _readers(graph)
    paths = {name: _computed_from(graph, readers, name) for name in sight.unseen}
    wide = reference.showing(tuple(dict.fromkeys(value for path in paths.values() for value in path))[:MOST])
    try:
        base = wide.run(inputs)
    except BackendError:  # it holds values that cannot be returned, or too many of them
        return sight
    traces: dict[str, Trace] = {}
    for name, path in paths.items():
        if time.monotonic() - started > seconds:
            break
        trace = _trace(wide, graph, inputs, base, comparison, name, path)
        if trace.is_idle and any(_has_effect(reference, one, comparison, name) for one in others):
            trace = replace(trace, is_idle=False, reason="it has no effect with these inputs, and has one with others")
        traces[name] = trace
    inner = _chosen(engine, reference, inputs, base, comparison, traces)
    found = {name for name, trace in traces.items() if trace.shows & set(inner)}
    return replace(
        sight,
        parameters=sight.parameters + len(found),
        by_inner=len(found),
        inner=inner,
        unseen=tuple(name for name in sight.unseen if name not in found),
        unseen_swapped=tuple(name for name in sight.unseen_swapped if name not in found),
        in_part=tuple(sorted({*sight.in_part, *(found & reference.tables)})),
        without_effect=tuple(name for name, trace in traces.items() if trace.is_idle),
        reasons={name: one.reason for name, one in traces.items() if one.is_idle or name not in found},
        seconds=sight.seconds + time.monotonic() - started,
    )


def _readers(graph: GraphProto) -> dict[str, list[int]]:
    """Return the places of the nodes that read each value."""
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(place)
    return readers


def _computed_from(graph: GraphProto, readers: Mapping[str, Sequence[int]], name: str) -> list[str]:
    """Return up to `NEAREST` values that are computed from one, the nearest first; no outputs."""
    outputs = {one.name for one in graph.output}
    found, front = {name: None}, [name]
    nearest: list[str] = []
    while front and len(nearest) < NEAREST:
        places = sorted({place for one in front for place in readers.get(one, ())})
        front = [value for place in places for value in graph.node[place].output if value and value not in found]
        found.update(dict.fromkeys(front))
        nearest += [value for value in front if value not in outputs]
    return nearest[:NEAREST]


def _trace(
    wide: Reference,
    graph: GraphProto,
    inputs: Arrays,
    base: Arrays,
    comparison: Comparison,
    name: str,
    path: Sequence[str],
) -> Trace:
    value = wide.weights[name]
    outputs = [one.name for one in graph.output]
    small = _run(wide, inputs, {name: changed(value)})
    shows = frozenset(one for one in path if _differs(one, small, base, comparison))
    large = {name: None}
    is_idle = True
    for signs in Signs:
        moved = _run(wide, inputs, {name: changed(value, LARGE, pattern(signs))})
        large.update(dict.fromkeys(one for one in path if _differs(one, moved, base, comparison)))
        is_idle = is_idle and not any(_moves(one, moved, base, comparison) for one in outputs)
    if is_idle:
        ends = " or ".join(dict.fromkeys(map(_named, _where_it_ends(graph, set(large), [*path, *outputs]))))
        what = (
            f"even a change of 100 times its size ends in {ends}" if ends else "nothing that is computed from it shows"
        )
        return Trace(shows, f"no output depends on it: {what}", is_idle=True)
    if shows:
        last = [one for one in path if one in shows][-1]
        return Trace(shows, f"a change of 1% shows in {last}, and in no output", is_idle=False)
    return Trace(shows, _too_little([*path, *outputs], small, base, comparison), is_idle=False)


def _too_little(watched: Sequence[str], small: Arrays | None, base: Arrays, comparison: Comparison) -> str:
    """Say how little a change of 1% moves what it moves most, and how large one has to be to be noticed there."""
    found = small or {}
    moved = {name: comparison.difference(name, found[name], base[name]) for name in watched if name in found}
    least = comparison.tolerance.max_abs  # what differs nowhere by more is right, whatever its share
    moved = {name: one for name, one in moved.items() if (one.max_abs or 0.0) > least}
    most = max(moved, key=lambda name: moved[name].relative_l2 or 0.0, default="")
    share = (moved[most].relative_l2 or 0.0) if most else 0.0
    allowed = comparison.tolerance.relative_l2
    if not share:
        return f"a change of 1% moves nothing that is computed from it by more than {least:g}"
    return (
        f"a change of 1% moves {most} by {share:.1e} in relative L2 and all else by less, and {allowed:g} is allowed: "
        f"one of about {SMALL * allowed / share:.0%} shows there"
    )


def _has_effect(reference: Reference, inputs: Arrays, comparison: Comparison, name: str) -> bool:
    """Whether an output depends on a parameter with these inputs; False if the definition cannot be run on them."""
    base = _run(reference, inputs, {})
    if base is None:
        return False
    large = (changed(reference.weights[name], LARGE, pattern(signs)) for signs in Signs)
    moved = (_run(reference, inputs, {name: value}) for value in large)
    return any(_moves(one, found, base, comparison) for found in moved for one in base)


def _where_it_ends(graph: GraphProto, moved: set[str], watched: Sequence[str]) -> Iterator[NodeProto]:
    """Yield the nodes that a change goes into and does not come out of."""
    for node in graph.node:
        if moved & set(node.input) and set(node.output) <= set(watched) and not moved & set(node.output):
            yield node


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _run(reference: Reference, inputs: Arrays, change: Arrays) -> Arrays | None:
    try:
        return reference.run(inputs, change)
    except BackendError:
        return None


def _differs(name: str, found: Arrays | None, base: Arrays, comparison: Comparison) -> bool:
    if found is None:
        return True  # with this change it does not run any more
    if name not in base:
        return False
    try:
        return bool(comparison.fault(name, comparison.difference(name, found[name], base[name])))
    except BackendError:  # it has another shape
        return True


def _moves(name: str, found: Arrays | None, base: Arrays, comparison: Comparison) -> bool:
    """Whether an output differs where it is another at all: a fill of -3.4e38 elsewhere would drown what moves."""
    if found is None or found[name].shape != base[name].shape:
        return True
    other = found[name] != base[name]
    return _differs(name, {name: found[name][other]}, {name: base[name][other]}, comparison)


def _chosen(
    engine: object,
    reference: Reference,
    inputs: Arrays,
    base: Arrays,
    comparison: Comparison,
    traces: Mapping[str, Trace],
) -> tuple[str, ...]:
    """Return the fewest inner values that show the most parameters, of those that the engine has; small ones first."""
    if not isinstance(engine, ShowsInnerValues):
        return ()
    wanted = {value for trace in traces.values() for value in trace.shows}
    usable = [name for name in base if name in wanted and dtype_name(base[name]) in COMPARED_DTYPES]
    try:
        apart = engine.show_apart(inputs, reference.weights, usable)
    except BackendError:
        return ()
    left = {name: trace.shows for name, trace in traces.items()}
    candidates = [name for name in apart if not _differs(name, apart, base, comparison) and _says(base[name])]
    chosen: list[str] = []
    while candidates and len(chosen) < MOST_COMPARED:
        gains = {one: sum(one in shows for shows in left.values()) for one in candidates}
        best = max(candidates, key=lambda one: (gains[one], -base[one].size))
        if not gains[best]:
            break
        chosen.append(best)
        left = {name: shows for name, shows in left.items() if best not in shows}
    return tuple(chosen)


def _says(array: Array) -> bool:
    return DTYPES[dtype_name(array)].kind == "float" and bool(np.isfinite(array).all())
