"""Sends every tipserve request of the migration page."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.server import LIMIT_S, ROOT, Server, photo

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FORMERS = ["NV-CLIP", "infinity", "clip-as-service", "Text Embeddings Inference", "Triton"]


def send(service: Server, text: str) -> Any:
    """Send a request in the page's form: line, headers, an empty line, JSON."""
    head, _, body = text.partition("\n\n")
    line, *fields = head.splitlines()
    verb, path = line.split()
    headers = dict(field.split(": ") for field in fields)
    url = f"{service.rest}{path}"
    answer = httpx.request(verb, url, content=body, headers=headers, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check_alike(shown: Any, given: Any) -> None:
    """Check equal fields and item counts; numbers are examples."""
    assert type(shown) is type(given)
    if isinstance(shown, dict):
        assert shown.keys() == given.keys()
        for name, value in shown.items():
            check_alike(value, given[name])
    elif isinstance(shown, list) and isinstance(shown[0], dict):
        for one, other in zip(shown, given, strict=True):
            check_alike(one, other)


@pytest.mark.parametrize("former", FORMERS)
def test_our_requests_are_answered_as_shown(
    service: Server, former: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo(1))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    (section,) = [s for s in page.split("\n## ") if s.startswith(f"From {former}")]
    given: Any = None
    blocks = BLOCK.findall(section)
    assert {"http", "python"} & {kind for kind, _ in blocks}
    for kind, text in blocks:
        ours = text.replace("MODEL", "tiny").replace("BASE64", base64.b64encode(photo(1)).decode())
        if kind == "http":
            given = send(service, ours)
        elif kind == "json":
            check_alike(json.loads(text), given)
        elif kind == "python":
            ours = ours.replace("http://localhost:8000", service.rest)
            ours = ours.replace("localhost:8000", service.rest.removeprefix("http://"))
            ours = ours.replace('open("photo.jpg", "rb").read()', 'Path("photo.jpg").read_bytes()')
            exec(compile(ours, former, "exec"), {"Path": Path})
        else:
            assert kind == "text"
