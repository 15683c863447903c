"""The dependency by which an endpoint reaches the artifacts."""

from typing import Annotated

from fastapi import Depends, Request

from app.artifacts.store import ArtifactStore


async def _store(request: Request) -> ArtifactStore:
    store: ArtifactStore = request.app.state.store
    return store


StoreDep = Annotated[ArtifactStore, Depends(_store)]
