"""The call that lists damaged artifacts."""

from fastapi import APIRouter

from app.engines import damaged
from app.engines.damaged import DamagedAnswer
from app.http.dependencies import SessionDep
from app.http.pagination import Listing, PageDep, Rows
from app.http.problems import problems
from app.http.routes import Route

router = APIRouter(prefix="/artifacts", tags=["blobs"], route_class=Route)


@router.get(
    "/damaged",
    summary="List damaged artifacts",
    response_model=Listing[DamagedAnswer],
    responses=problems(422),
)
def list_damaged(session: SessionDep, page: PageDep) -> Rows[DamagedAnswer]:
    """What was found damaged or missing in the store, what needs it, and what to do about it.

    Whoever reads an artifact finds it, and the scrubber reads every artifact within ENGINESMITH_SCRUB_PERIOD_S.
    """
    return damaged.list_damaged(session, page)
