"""A hub on a free port of this machine, which refuses requests when told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


@dataclass
class Hub:
    """Content, faults and requests of the hub.

    Attributes:
        files: Contents by path, of every repository.
        repositories: Ids that exist.
        commits: Commit of each revision.
        gated: Whether `TOKEN` is required.
        status: Answer to every request, if set.
        asked: Method and path of every request, in order.
    """

    repositories: set[str]
    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False
    status: int | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def gets(self, name: str) -> list[str]:
        """Paths of the requests for a file."""
        return [path for method, path in self.asked if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Write no log."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        if len(parts) < 4:
            self._send(404, b"", {})
            return
        repository, kind, revision = "/".join(parts[:2]), parts[2], parts[3]
        rest = "/".join(parts[4:])
        refusal = self._refusal(repository, revision)
        if refusal is not None:
            self._send(refusal[0], b"{}", {"X-Error-Code": refusal[1]})
        elif kind == "revision":
            self._json({"id": repository, "sha": self.hub.commits[revision], "siblings": []})
        elif kind == "tree":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(c), "oid": sha1(c).hexdigest()}
                    for name, c in self.hub.files.items()
                ]
            )
        elif rest not in self.hub.files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(self.hub.files[rest], self.hub.commits.get(revision, revision))

    def _refusal(self, repository: str, revision: str) -> tuple[int, str] | None:
        if self.hub.status is not None:
            return self.hub.status, ""
        if repository not in self.hub.repositories:
            return 404, "RepoNotFound"
        if self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 403, "GatedRepo"
        if revision not in {*self.hub.commits, *self.hub.commits.values()}:
            return 404, "RevisionNotFound"
        return None

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, content: bytes, commit: str) -> None:
        self._send(
            200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Run the hub until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
