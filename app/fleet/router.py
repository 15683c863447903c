"""Calls on the fleet."""

from typing import Any

from fastapi import APIRouter

from app.fleet import service
from app.fleet.schemas import WorkerAnswer
from app.http.dependencies import SessionDep, SettingsDep
from app.http.pagination import Listing, PageDep, list_items
from app.http.routes import Route

router = APIRouter(prefix="/workers", tags=["fleet"], route_class=Route)


@router.get("", summary="List workers", response_model=Listing[WorkerAnswer])
def list_workers(session: SessionDep, settings: SettingsDep, page: PageDep) -> Any:
    """The workers alive now, with device, backend versions and free memory."""
    workers = sorted(service.alive(session, settings), key=lambda worker: worker.id)
    return list_items(workers, lambda worker: worker.id, page)
