"""The dependency by which an endpoint reaches the children."""

from typing import Annotated

from fastapi import Depends, Request

from app.children.children import Children


async def _children(request: Request) -> Children:
    children: Children = request.app.state.children
    return children


ChildrenDep = Annotated[Children, Depends(_children)]
