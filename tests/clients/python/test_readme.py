"""The examples of the client's README run as they stand there, against the real server."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from service.server import Server

Serving = Callable[..., AbstractAsyncContextManager[Server]]


async def test_every_example_runs(
    project_root: Path,
    serving: Serving,
    encode_image: Callable[..., bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (project_root / "clients" / "python" / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 6
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(encode_image("JPEG", seed=index))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names: dict[str, Any] = {"photo": encode_image(), "folder": tmp_path, "vectors": []}
    async with serving() as server:
        for example in examples:
            code = example.replace("localhost:8001", f"127.0.0.1:{server.ports['grpc']}")
            code = code.replace("localhost:8000", f"127.0.0.1:{server.ports['http']}")
            await asyncio.to_thread(exec, code, {"__name__": "example", **names})
    said = capsys.readouterr().out
    assert len(names["vectors"]) == 3
    assert "invalid_image images[1] 1" in said
    assert "(30, 40)" in said
    assert "int8 (2, 2)\n(2, 2, 8)" in said
    assert "partial: 0 (8,)\npartial: 1 invalid_image\npartial: 2 unreadable_file" in said
