"""Indexes of uploaded files: which tensors are in them, each hashed. They are made in children and kept as text."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute

from app.artifacts.store import ArtifactStore
from app.children.channel import Answerer, Question, no_answers
from app.children.failures import AnswerTooLong, ChildFailed, Crashed
from app.children.fork_server import read_written
from app.children.house import House
from app.children.limits import ChildLimits
from app.database import Database, JsonText
from app.errors import FieldError, Invalid, Unavailable
from app.weights.checkpoint import CheckpointError
from app.weights.combination import Rows, combined
from app.weights.limits import combine_limits, index_limits
from app.weights.tables import CheckpointFile
from app.weights.unsaved import UnsavedWeights

CHUNK_BYTES: Final = 4 * 1024 * 1024
JsonColumn = InstrumentedAttribute[list[Any]] | InstrumentedAttribute[list[Any] | None]
SMALL_BYTES: Final = 256 * 1024  # of JSON, a thousand tensors: these need no child to be put together


@dataclass(frozen=True, slots=True)
class Index:
    """The tensors of a file, or of a weight version, as JSON: rows of `entries_to_json` and `non_finite_to_json`."""

    tensors: str
    non_finite: str | None

    def pieces(self) -> Iterator[bytes]:
        """Yield JSON for `Rows.parse`."""
        yield b"["
        yield self.tensors.encode()
        yield b", "
        yield (self.non_finite or "null").encode()
        yield b"]"


@dataclass(frozen=True, slots=True)
class Source:
    """An index that is read when it is needed, because a request may name a thousand. `length` is that of its JSON."""

    length: int
    load: Callable[[], Index]

    @classmethod
    def of(cls, index: Index) -> "Source":
        """Return a source of what is in memory already."""
        return cls(len(index.tensors) + len(index.non_finite or ""), lambda: index)


def index_file(database: Database, store: ArtifactStore, house: House, digest: str) -> Source:
    """Return the index of an uploaded file, made on first use and kept.

    Opens its own short sessions. Raises CheckpointError if the file is not acceptable, Unavailable if no child can be
    started, the child is lost or the bytes are missing.
    """
    known = _known(database, digest)
    return known or house.share(("index", digest), lambda: _index(database, store, house, digest))


def index_ranges(house: House, ranges: Path, files: Mapping[str, Path], digests: Mapping[str, str]) -> Source:
    """Return the index of tensors that lie somewhere in files, which need not be checkpoints.

    `ranges` is a file of rows of `ExternalRange`. Both mappings are by location. Raises CheckpointError or Unavailable.
    """
    size = sum(file.stat().st_size for file in files.values())
    paths = {location: str(file.resolve()) for location, file in files.items()}
    task = {"ranges": str(ranges), "files": paths, "digests": dict(digests)}
    with house.folder("index") as directory:
        return Source.of(_indexed(_ask(house, "index_ranges", task, index_limits(size), directory), directory))


def combine(house: House, files: Sequence[Source], below: Source | None = None) -> UnsavedWeights:
    """Return the weight version of all tensors of `files`, put over those of the version `below`.

    Raises Invalid if two files have one tensor, or if there are no tensors or too many; or Unavailable.
    """
    if sum(one.length for one in (*files, below) if one is not None) <= SMALL_BYTES:
        return UnsavedWeights.of(combined(map(_rows, files), None if below is None else _rows(below)))

    def answers(question: Question) -> Iterable[bytes]:
        number = question["file"]
        source = below if number is None else files[number]
        return () if source is None else source.load().pieces()

    with house.folder("combine") as directory:
        task = {"count": len(files), "below": below is not None}
        try:
            answer = _ask(house, "combine", task, combine_limits(), directory, answers)
            if "rejected" in answer:
                raise _invalid(answer["rejected"])
            made, manifest = answer["made"], JsonText(_read(directory / "manifest.json"))
        except CheckpointError as error:
            raise Invalid(error.detail, code=error.code) from error
    return UnsavedWeights(**{**made, "blobs": tuple(made["blobs"]), "manifest": manifest})


def source_of(
    database: Database, tensors: JsonColumn, non_finite: JsonColumn, row: ColumnElement[bool]
) -> Source | None:
    """Return the index that two JSON columns of a row hold; None if there is no such row."""
    texts = cast(tensors, Text), cast(non_finite, Text)

    def load() -> Index:
        with database.reading() as session:
            return Index(*session.execute(select(*texts).where(row)).one())

    lengths = func.length(texts[0]), func.coalesce(func.length(texts[1]), 0)
    with database.reading() as session:
        found = session.execute(select(*lengths).where(row)).one_or_none()
    return None if found is None else Source(sum(found), load)


def _known(database: Database, digest: str) -> Source | None:
    return source_of(database, CheckpointFile.tensors, CheckpointFile.non_finite, CheckpointFile.digest == digest)


def _rows(source: Source) -> Rows:
    return Rows.parse(b"".join(source.load().pieces()))


def _index(database: Database, store: ArtifactStore, house: House, digest: str) -> Source:
    known = _known(database, digest)  # whoever shared this work before may just have ended
    if known is not None:
        return known
    size = store.size(digest)
    if size is None:
        raise Unavailable(f"{digest} is on record, but its bytes are not in the store. Upload it again.")
    path = str(store.local_path(digest).resolve()) if store.directory is not None else None

    def answers(question: Question) -> Iterable[bytes]:
        return store.iter_bytes(digest, question["start"], min(question["stop"], size), CHUNK_BYTES)

    with house.folder("index") as directory:
        task = {"file": path, "size": size, "digest": digest}
        index = _indexed(_ask(house, "index", task, index_limits(size), directory, answers), directory)
    row = CheckpointFile(digest=digest, tensors=JsonText(index.tensors), non_finite=JsonText(index.non_finite))
    # Whoever hashed the same file at the same time, in another process, wrote the same row.
    with suppress(IntegrityError), database.transaction() as session:
        session.add(row)
    return Source.of(index)


def _indexed(answer: Mapping[str, Any], directory: Path) -> Index:
    if "rejected" in answer:
        raise CheckpointError(answer["rejected"]["code"], answer["rejected"]["detail"])
    return Index(_read(directory / "tensors.json"), _read(directory / "non_finite.json"))


def _ask(
    house: House,
    function: str,
    task: Mapping[str, Any],
    limits: ChildLimits,
    directory: Path,
    answers: Answerer = no_answers,
) -> dict[str, Any]:
    try:
        return house.child(f"app.weights.child:{function}", task, limits, directory, answers)
    except ChildFailed as failure:
        raise _blamed(failure) from failure


def _read(path: Path) -> str:
    try:
        return read_written(path)
    except AnswerTooLong as failure:
        raise _blamed(failure) from failure


def _invalid(rejected: Mapping[str, Any]) -> Invalid:
    errors = [FieldError(error["pointer"], error["detail"]) for error in rejected["errors"]]
    return Invalid(rejected["detail"], code=rejected["code"], errors=errors)


def _blamed(failure: ChildFailed) -> CheckpointError:
    if isinstance(failure, AnswerTooLong):
        return CheckpointError(
            "header_too_large",
            f"The description of the file's tensors is longer than {failure.most} bytes. Give the tensors shorter "
            "names, or split the checkpoint up.",
        )
    if isinstance(failure, Crashed):
        return CheckpointError(
            "parser_crashed",
            f"The parser did not survive this file (exit status {failure.status}). Write the file again.",
        )
    return CheckpointError(
        "parsing_timeout",
        "Reading the file takes more processor time than a file of its size may. Split the checkpoint up.",
    )
