"""The web pages: `/` shows what the model sees, `/docs` describes the API. Both work offline."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from service.safety.url_fetch import UrlFetcher

WEB: Final = Path(__file__).parent / "web"
FILES: Final = "/web"
PAGES: Final = {"/": "index.html", "/docs": "docs.html"}
EVERY_ADDRESS: Final = ("0.0.0.0", "::")
ICON: Final = "/favicon.ico"
# `blob:` and `data:` are images that the page has in memory. Images of other hosts are read as
# data, without cookies, and only where these hosts let pages do so (CORS).
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src {}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is of a page or its files, which are the same for every server."""
    return path in PAGES or path == ICON or path.startswith(f"{FILES}/")


def add_pages(app: FastAPI) -> None:
    """Add the pages and their files to an application."""
    for path, name in PAGES.items():
        app.add_api_route(path, _page(name), include_in_schema=False)
    app.add_api_route(ICON, _icon, include_in_schema=False)
    # Swagger UI's own files come from a package, so that they are updated with it.
    files = StaticFiles(directory=WEB, packages=[("fastapi_swagger", "resources")])
    app.mount(FILES, files)


def page_url(host: str, port: int, *, is_tls: bool) -> str:
    """Where a browser on this machine finds the page of a server that listens on `host`."""
    name = "localhost" if host in EVERY_ADDRESS else host
    return f"{'https' if is_tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}/"


def _page(name: str) -> Callable[[Request], Awaitable[FileResponse]]:
    async def page(request: Request) -> FileResponse:
        fetcher: UrlFetcher | None = getattr(request.app.state, "url_fetcher", None)
        hosts = [f"https://{host}" for host in fetcher.hosts] if fetcher else []
        policy = POLICY.format(" ".join(["'self'", *hosts]))
        return FileResponse(WEB / name, headers={"Content-Security-Policy": policy, **HEADERS})

    return page


async def _icon() -> FileResponse:
    return FileResponse(WEB / "icon.svg")
