"""Sends every tipserve request of the migration page."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FORMERS = ["NV-CLIP", "infinity", "clip-as-service", "Text Embeddings Inference", "Triton"]

Photo = Callable[..., bytes]


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    return (project_root / "docs" / "migration.md").read_text(encoding="utf-8")


def blocks_of(page: str, former: str) -> list[tuple[str, str]]:
    """Return language and text of each block of a section."""
    (section,) = [s for s in page.split("\n## ") if s.startswith(f"From {former}")]
    return BLOCK.findall(section)


def send(service: "Service", text: str) -> Any:
    """Send a request in the page's form: line, headers, an empty line, JSON."""
    head, _, body = text.partition("\n\n")
    line, *fields = head.splitlines()
    verb, path = line.split()
    headers = dict(field.split(": ") for field in fields)
    url = f"http://127.0.0.1:{service.ports['http']}{path}"
    answer = httpx.request(verb, url, content=body, headers=headers, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check_alike(shown: Any, given: Any) -> None:
    """Check equal fields and item counts; numbers are examples."""
    if isinstance(shown, dict):
        assert shown.keys() == given.keys()
        for name, value in shown.items():
            check_alike(value, given[name])
    elif isinstance(shown, list) and isinstance(shown[0], dict):
        assert len(shown) == len(given)
        for one, other in zip(shown, given, strict=True):
            check_alike(one, other)
    else:
        assert type(shown) is type(given)


@pytest.mark.parametrize("former", FORMERS)
def test_our_requests_are_answered_as_shown(
    service: "Service",
    photo: Photo,
    page: str,
    former: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo(1))
    monkeypatch.chdir(tmp_path)
    given: Any = None
    blocks = blocks_of(page, former)
    assert {"http", "python"} & {kind for kind, _ in blocks}
    for kind, text in blocks:
        ours = text.replace("MODEL", "tiny").replace("BASE64", base64.b64encode(photo(1)).decode())
        if kind == "http":
            given = send(service, ours)
        elif kind == "json":
            check_alike(json.loads(text), given)
        elif kind == "python":
            ours = ours.replace("localhost:8000", f"127.0.0.1:{service.ports['http']}")
            ours = ours.replace('open("photo.jpg", "rb").read()', 'Path("photo.jpg").read_bytes()')
            exec(compile(ours, former, "exec"), {"Path": Path})
        else:
            assert kind == "text"
