"""Calls on engines, and calls that make and use them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from app.artifacts.damage import require_undamaged
from app.artifacts.dependencies import StoreDep
from app.artifacts.serving import MEDIA_TYPE, serve_blob
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.engines import queries, requests
from app.engines.lineage import Lineage, Relative
from app.engines.manifest import engine_manifest
from app.engines.preflight import PreflightsDep
from app.engines.schemas import (
    ENGINE,
    BenchmarkRequest,
    BuildRequest,
    EngineAnswer,
    EngineDetailAnswer,
    EngineRequest,
    LineageAnswer,
    ManifestAnswer,
    RefitRequest,
    RelativeAnswer,
    RunRequest,
    VerifyRequest,
)
from app.engines.tables import Engine
from app.errors import Conflict, ServiceError
from app.http.dependencies import DatabaseDep, SessionDep, SettingsDep
from app.http.fields import Number
from app.http.pagination import MAX_LIMIT, Listing, PageDep
from app.http.pools import Pool
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, heavy, max_body
from app.jobs.schemas import JobAnswer
from app.jobs.state import FINAL
from app.jobs.submission import JOB_HEADERS, JOB_RESPONSES, PatientSubmitDep, Submit, SubmitDep
from app.office.office import OfficeDep
from app.registry.service import get_model
from app.settings import Settings

router = APIRouter(prefix="/models/{model}", tags=["engines"], route_class=Route)

EngineNumber = Annotated[Number, Path(description="The number of the engine.")]
NumberFilter = Annotated[Number | None, Query(description="Only engines with this one.")]
MAKES_JOB: dict[str, Any] = {
    "status_code": 202,
    "response_model": JobAnswer,
    "responses": {**JOB_RESPONSES, **problems(404, 422, 503)},
}
MAY_COMPILE: dict[str, Any] = MAKES_JOB | {
    "responses": {**JOB_RESPONSES, **problems(404, 409, 422, 503)},
    "openapi_extra": max_body(WITH_RULES_BYTES),
}
TAKES_RULES: dict[str, Any] = MAKES_JOB | {"openapi_extra": max_body(WITH_RULES_BYTES)}
BINARY: dict[str, Any] = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "bytes"}}
HEADERS: dict[str, Any] = {
    "ETag": {"schema": {"type": "string"}, "example": f'"{ENGINE["plan_digest"]}"'},
    "Accept-Ranges": {"schema": {"type": "string"}, "example": "bytes"},
    "Content-Disposition": {"schema": {"type": "string"}, "example": "attachment; filename*=UTF-8''minilm-2.onnx"},
}


@router.post("/builds", summary="Build an engine", **MAY_COMPILE)
async def build(
    model: str,
    body: BuildRequest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    submit: SubmitDep,
    preflights: PreflightsDep,
) -> Response:
    """Compile a definition with one weight version; the answer is a job.

    The binding, the profiles and the options are checked before this answers. A definition that the backend is known to
    refuse is refused, see …/builds/check. If an equal engine exists that has been verified as asked, the job is
    finished and names it; one that has been verified less strongly is verified by the job. `reuse: false` compiles all
    the same. If its plan is not written yet, `result.materialising` is the job that writes it. If an equal build is
    under way, the job waits for it and has its engine.

    What the compiler of every worker has crashed at twice is refused (`compiler_crashes`); `crashes` of the definition
    lists that.
    """
    vetted = submit if body.preflight == "ignore" else submit.vetted(preflights.vet)
    return await vetted(requests.request_build, database, store, settings, model, body)


@router.post("/refits", summary="Refit an engine", **TAKES_RULES)
async def refit(
    model: str, body: RefitRequest, database: DatabaseDep, store: StoreDep, settings: SettingsDep, submit: SubmitDep
) -> Response:
    """Make a new engine of an existing one by giving it other weights; the answer is a job.

    Definition, backend, profiles, options and binding rules are the engine's. It stays as it is. The job's
    `result.seconds` is the time since a worker took it, and `result.stages` has the `seconds` and `bytes` of each of
    its ten stages.
    """
    return await submit(requests.request_refit, database, store, settings, model, body)


@router.post("/engines", summary="Get an engine for weights by the cheapest way", **MAY_COMPILE)
async def make_engine(
    model: str,
    body: EngineRequest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    submit: SubmitDep,
    preflights: PreflightsDep,
) -> Response:
    """Reuse an equal engine, else refit the newest one that differs in its weights only, else build.

    The job's `result.method` is `reuse`, `refit` or `build`.
    """
    vetted = submit if body.preflight == "ignore" else submit.vetted(preflights.vet)
    return await vetted(requests.request_engine, database, store, settings, model, body)


@router.post("/runs", summary="Run an engine", **MAKES_JOB)
async def run(
    model: str, body: RunRequest, database: DatabaseDep, settings: SettingsDep, submit: SubmitDep
) -> Response:
    """Run an engine on a safetensors blob with one tensor per input; the job's `result.outputs` is another one."""
    return await submit(requests.request_run, database, settings, model, body)


@router.post("/benchmarks", summary="Measure an engine", **MAKES_JOB)
async def benchmark(
    model: str, body: BenchmarkRequest, database: DatabaseDep, settings: SettingsDep, submit: SubmitDep
) -> Response:
    """Time an engine on fixed inputs; the answer is a job.

    Its `result.latency` holds the median, the 99th percentile and the mean of the seconds a run takes, and runs a
    second as `throughput`. With `against` the same is in `result.not_refittable`, and `result.ratio` is the
    engine's median over that one's: 1.1 says that refit support costs a tenth. `result.layers` holds the
    seconds of each layer in order of execution, of the 500 slowest if there are more, and `result.report` the
    digest of a JSON blob with every sample, every layer and what the backend's inspector says of the engine.
    """
    return await submit(requests.request_benchmark, database, settings, model, body)


@router.get("/engines", summary="List engines", response_model=Listing[EngineAnswer], responses=problems(404, 422))
def list_engines(
    model: str,
    session: SessionDep,
    page: PageDep,
    definition: NumberFilter = None,
    weights: NumberFilter = None,
    backend: Annotated[str | None, Query(description="Only engines of this backend.")] = None,
) -> Any:
    """The model's engines, newest first."""
    owner = get_model(session, model)
    return queries.list_engines(session, owner.id, page, definition=definition, weights=weights, backend=backend)


@router.get(
    "/engines/{number}",
    summary="Read an engine",
    response_model=EngineDetailAnswer,
    responses=problems(404, 422),
)
def read_engine(model: str, number: EngineNumber, session: SessionDep) -> Any:
    """What it was made of and how, what its verification found, and how long it took."""
    return queries.get_engine(session, get_model(session, model).id, number, load=queries.DETAIL)


@router.post("/engines/{number}/verify", summary="Verify an engine again", **MAKES_JOB)
async def verify(
    model: str,
    number: EngineNumber,
    body: VerifyRequest,
    database: DatabaseDep,
    settings: SettingsDep,
    submit: SubmitDep,
) -> Response:
    """Compare a published engine with a reference; the job's result holds the figures, the engine stays as it is."""
    return await submit(requests.request_verify, database, settings, model, number, body)


@router.post("/engines/{number}/materialise", summary="Write the plan of an engine", **MAKES_JOB)
async def materialise(
    model: str, number: EngineNumber, database: DatabaseDep, settings: SettingsDep, submit: SubmitDep
) -> Response:
    """Write the plan of an engine that was refitted with `materialise: "lazy"`; the answer is a job.

    If the plan is written already, the job is finished. If a job is writing it, that job is the answer. An alias on the
    engine and a download of its plan do the same by themselves.
    """
    return await submit(requests.request_materialise, database, settings, model, number)


@router.get(
    "/engines/{number}/lineage",
    summary="Read an engine's lineage",
    response_model=LineageAnswer,
    responses=problems(404, 422, 503),
)
@heavy
async def read_lineage(
    model: str,
    number: EngineNumber,
    database: DatabaseDep,
    office: OfficeDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Engines in each direction.")] = 50,
) -> Any:
    """Its ancestors up to the first build and its descendants, with what each changed in the weights."""
    return await office.where_it_fits(_lineage_of, database, model, number, limit)


@router.get(
    "/engines/{number}/manifest",
    summary="Read an engine's manifest",
    response_model=ManifestAnswer,
    responses=problems(404, 422, 503),
)
async def read_manifest(model: str, number: EngineNumber, database: DatabaseDep, office: OfficeDep) -> Response:
    """One document that says everything about how the engine came to be."""
    document = await office.where_it_fits(_manifest, database, model, number)
    return Response(document, media_type="application/json")


@router.get(
    "/engines/{number}/plan",
    summary="Download an engine's plan",
    response_class=Response,
    responses={
        200: {"content": BINARY, "headers": HEADERS},
        206: {"content": BINARY, "headers": HEADERS, "description": "The range asked for."},
        202: JOB_RESPONSES[202] | {"description": "The job that writes the plan has not ended yet."},
        304: {"description": "If-None-Match names it: the client has these bytes."},
        **problems(404, 409, 412, 416, 422, 500, 503),
    },
)
async def download_plan(
    model: str,
    number: EngineNumber,
    request: Request,
    database: DatabaseDep,
    settings: SettingsDep,
    store: StoreDep,
    submit: PatientSubmitDep,
) -> Response:
    """The serialized engine. Its ETag is its digest; one Range is served, also under If-Range.

    The plan of an engine that was refitted with `materialise: "lazy"` is written now and served as soon as it is
    there; if that takes longer than `Prefer: wait` or the service allows, the answer is 202 and the job.
    """
    return await _serve_plan(model, number, request, database, settings, store, submit)


@router.head(
    "/engines/{number}/plan",
    summary="Read the headers of an engine's plan",
    response_class=Response,
    responses={
        200: {"headers": HEADERS},
        202: {"description": "The job that writes the plan has not ended yet.", "headers": JOB_HEADERS},
        **problems(404, 409, 412, 422, 500, 503),
    },
)
async def look_at_plan(
    model: str,
    number: EngineNumber,
    request: Request,
    database: DatabaseDep,
    settings: SettingsDep,
    store: StoreDep,
    submit: PatientSubmitDep,
) -> Response:
    """The headers of a download: size, digest and file name. A plan that is not written yet is written first.

    A plan that is on record as damaged is answered with 503.
    """
    return await _serve_plan(model, number, request, database, settings, store, submit)


async def _serve_plan(
    model: str,
    number: int,
    request: Request,
    database: Database,
    settings: Settings,
    store: ArtifactStore,
    submit: Submit,
) -> Response:
    def read() -> Engine:
        with database.reading() as session:
            return queries.get_engine(session, get_model(session, model).id, number)

    reads: Pool = request.app.state.pools.reads
    async with reads.place():
        engine = await reads.thread(read)
    if not engine.materialised:
        job = await submit.job(requests.request_materialise, database, settings, model, number)
        if job.state not in FINAL:
            return submit.answer(job)
        engine = await reads.run(read)
        if not engine.materialised:
            raise _not_written(job)
    if request.method == "HEAD":  # a download finds out by itself
        await reads.run(require_undamaged, database, str(engine.plan_digest))
    suffix = "onnx" if engine.backend == "onnxruntime" else "plan"
    name = f"{model}-{number}.{suffix}"
    transfers: Pool = request.app.state.pools.transfers
    return await transfers.run(
        serve_blob, request, store, str(engine.plan_digest), filename=name, etag=str(engine.plan_digest)
    )


def _not_written(job: JobAnswer) -> ServiceError:
    if job.error is None:
        return Conflict(
            f"The job {job.id} that was to write the plan was canceled. Send the request again for another one.",
            code="materialise_canceled",
        )
    return ServiceError(
        f"The plan could not be written: {job.error['detail']} GET /v1/jobs/{job.id} tells more; the same request "
        "tries it again.",
        code=job.error["code"],
    )


def _manifest(database: Database, model: str, number: int) -> bytes:
    with database.reading() as session:
        document = engine_manifest(session, get_model(session, model), number)
    return ManifestAnswer.model_validate(document).model_dump_json().encode()


def _lineage_of(database: Database, model: str, number: int, limit: int) -> LineageAnswer:
    with database.reading() as session:
        owner = get_model(session, model)
        lineage = queries.load_lineage(session, owner.id, number, ancestors=limit, descendants=limit)
    return _lineage(lineage, queries.count_changed_tensors(database, lineage))


def _lineage(lineage: Lineage, changed: dict[int, int]) -> LineageAnswer:
    def relative(engine: Relative) -> RelativeAnswer:
        return RelativeAnswer(
            number=engine.number,
            method=engine.method,
            parent=engine.parent,
            weights=engine.weights,
            label=engine.label,
            changed_tensors=changed.get(engine.number),
            created_at=engine.created_at,
        )

    return LineageAnswer(
        engine=relative(lineage.engine),
        ancestors=[relative(engine) for engine in lineage.ancestors],
        descendants=[relative(engine) for engine in lineage.descendants],
        ancestors_complete=lineage.ancestors_complete,
        descendants_complete=lineage.descendants_complete,
    )
