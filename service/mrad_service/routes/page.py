"""The page at `/`: plain files, from this server alone."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parents[1] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def page_router() -> APIRouter:
    """`/` and `/page/{name}`. No key: the page asks for one."""
    router = APIRouter(include_in_schema=False)
    router.get("/")(index)
    router.get("/page/{name}")(part)
    return router


async def index() -> FileResponse:
    """The page."""
    return await part("index.html")


async def part(name: str) -> FileResponse:
    """A file of the page; only those that lie in its folder, by name."""
    path = FOLDER / name
    known = TYPES.get(path.suffix)
    if known is None or path.parent != FOLDER or not path.is_file():
        raise HTTPException(404, "the page has no such part")
    return FileResponse(path, media_type=known, headers={"Cache-Control": "no-cache"})
