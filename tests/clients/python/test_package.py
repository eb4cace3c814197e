"""The client's distribution, and the examples of its README."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import Serving


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


PROGRAM = """
import importlib.metadata, sys

BLOCKED = {"fastapi", "onnxruntime", "pydantic", "PIL", "service", "model"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise AssertionError("the client imported " + name)

sys.meta_path.insert(0, Block())
import tipserve_client
from tipserve_client.generated import stream_pb2

assert sys.argv[1] in tipserve_client.__file__, tipserve_client.__file__
files = importlib.metadata.files("tipserve-client")
assert any(file.name == "py.typed" for file in files)
for url in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
    client = tipserve_client.Client(url, retry=tipserve_client.Retry(max_attempts=1))
    try:
        client.embed_texts(["dog"], timeout_s=5)
    except tipserve_client.Unavailable:
        print("unavailable")
    client.close()
"""


@pytest.mark.slow
def test_the_wheel_works_without_the_service(project_root: Path, tmp_path: Path) -> None:
    """In a virtual environment with the wheel, and with the dependencies of this environment."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    left_by_builds = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(project_root / "clients" / "python", source, ignore=left_by_builds)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-index", "--no-deps"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("tipserve_client-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", *offline, str(wheel)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    this = {path for path in sys.path if path.endswith("site-packages")}
    (packages / "dependencies.pth").write_text("\n".join(this) + "\n", encoding="utf-8")
    command = [python, "-I", "-c", PROGRAM, str(venv)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unavailable", "unavailable"]
