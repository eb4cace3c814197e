"""The web pages: `/` shows what the model sees, `/docs` describes the API. Both work offline."""

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import Response

WEB: Final = Path(__file__).parent / "web"
FILES: Final = "/web"
PAGES: Final = {"/": "index.html", "/docs": "docs.html"}
EVERY_ADDRESS: Final = ("0.0.0.0", "::")
ICON: Final = "/favicon.ico"
# `blob:` and `data:` are images that the page has in memory.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is of a page or its files, which are the same for every server."""
    return path in PAGES or path == ICON or path.startswith(f"{FILES}/")


def add_pages(app: FastAPI) -> None:
    """Add the pages and their files, 2 MB, which are read once: nobody needs a key for them."""
    for path, name in PAGES.items():
        app.add_route(path, _answer(WEB / name, HEADERS), include_in_schema=False)
    app.add_route(ICON, _answer(WEB / "icon.svg"), include_in_schema=False)
    # Swagger UI's own files come from a package, so that they are updated with it.
    folders = (resources.files("fastapi_swagger") / "resources", WEB)
    found = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    files = {file.name: _answer(file) for file in found if not file.name.endswith(".py")}

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404)
        return await files[name](request)

    app.add_route(f"{FILES}/{{name}}", answer, include_in_schema=False)


def page_url(host: str, port: int, *, is_tls: bool) -> str:
    """Where a browser on this machine finds the page of a server that listens on `host`."""
    name = "localhost" if host in EVERY_ADDRESS else host
    return f"{'https' if is_tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}/"


def _answer(
    file: Traversable, headers: Mapping[str, str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    content, (kind, _) = file.read_bytes(), mimetypes.guess_type(file.name)
    tag = f'"{hashlib.sha256(content).hexdigest()}"'

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(content, media_type=kind, headers={**(headers or {}), "ETag": tag})

    return answer
