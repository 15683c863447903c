import json
from dataclasses import replace

from app.weights.diff import diff
from app.weights.manifest import Manifest, TensorEntry


def entry(name: str, *, blake3: str = "a" * 64, shape: tuple[int, ...] = (2, 2), blob: str = "sha256:1") -> TensorEntry:
    return TensorEntry(name, "F32", shape, blake3, blob, 128, 16)


def test_comes_back_from_json() -> None:
    manifest = Manifest.of([entry("b"), entry("a", shape=())])
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert list(manifest.tensors) == ["a", "b"]


def test_digest_does_not_depend_on_order_or_place() -> None:
    one = Manifest.of([entry("a"), entry("b")])
    other = Manifest.of([replace(entry("b"), blob="sha256:2", offset=0), entry("a")])
    assert one.digest == other.digest
    assert one.digest.startswith("sha256:")


def test_digest_depends_on_name_dtype_shape_and_values() -> None:
    first = entry("a")
    variants = [
        first,
        replace(first, name="b"),
        replace(first, dtype="I32"),
        replace(first, shape=(4,)),
        replace(first, blake3="b" * 64),
    ]
    assert len({Manifest.of([one]).digest for one in variants}) == len(variants)


def test_overlay_replaces_and_adds_and_keeps_the_rest() -> None:
    base = Manifest.of([entry("a"), entry("b")])
    changed = entry("b", blake3="b" * 64, blob="sha256:2")
    result = base.overlay(Manifest.of([changed, entry("c")]))
    assert dict(result.tensors) == {"a": entry("a"), "b": changed, "c": entry("c")}
    assert result.nbytes == 48
    assert result.blobs == ("sha256:1", "sha256:2")
    assert list(base.tensors) == ["a", "b"]


def test_diff_tells_added_removed_changed_and_unchanged() -> None:
    before = Manifest.of([entry("same"), entry("gone"), entry("values"), entry("reshaped")])
    after = Manifest.of(
        [
            replace(entry("same"), blob="sha256:2", offset=0),
            entry("values", blake3="b" * 64),
            entry("reshaped", shape=(4,)),
            entry("new"),
        ]
    )
    found = diff(before, after)
    assert [(one.name, one.change) for one in found.changes] == [
        ("gone", "removed"),
        ("new", "added"),
        ("reshaped", "changed"),
        ("values", "changed"),
    ]
    assert found.unchanged == 1
    assert found.bytes_changed == 48
    assert found.count("changed") == 2


def test_diff_with_itself_is_empty() -> None:
    manifest = Manifest.of([entry("a"), entry("b")])
    assert diff(manifest, manifest).changes == ()
    assert diff(manifest, manifest).unchanged == 2
