"""The examples of the documentation run unchanged against the bundled model.

Blocks marked `bash` and `python` are run. Blocks marked `sh` install software, start servers or
need a cluster; no test runs them. tests/end_to_end/test_curl.py runs the `curl` lines of
docs/api.md, which need a model with dense heads.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.package import open_package
from tests.tools import find_tool

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 120
ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = ("README.md", "docs/quickstart.md", "docs/api.md", "docs/clients.md")
EXAMPLES = [
    pytest.param(kind, text, id=f"{page}-{number}")
    for page in PAGES
    for number, (kind, text) in enumerate(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))
    if not text.startswith("# ")
]


@pytest.fixture(scope="module")
def bundled_service(run_service: Callable[..., Any]) -> Iterator["Service"]:
    """Service with the documentation's model."""
    with run_service(packages=(open_package(ROOT / "model" / "bundled"),)) as running:
        yield running


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_an_example_runs(bundled_service: "Service", tmp_path: Path, kind: str, text: str) -> None:
    for tool in ("buf", "curl"):
        if f"{tool} " in text:
            find_tool(tool)
    for name in ("examples", ".tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, port in (("8000", "http"), ("8001", "grpc")):
        text = text.replace(f"localhost:{name}", f"127.0.0.1:{bundled_service.ports[port]}")
    # curl reads it from CURL_HOME; without it an error status would not fail the example.
    (tmp_path / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n", encoding="utf-8")
    interpreters = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*interpreters[kind], text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "PATH": scripts, "CURL_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_page_has_examples() -> None:
    names = [str(example.id) for example in EXAMPLES]
    assert all(any(name.startswith(page) for name in names) for page in PAGES)
