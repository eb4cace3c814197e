"""Clients of other projects, as published, run their examples of docs/clients.md.

They are installed apart from this project: `scripts/tools/clients.sh`.
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
from tests.tools import TOOLS, miss

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

pytestmark = pytest.mark.slow
LIMIT_S = 240
ROOT = Path(__file__).resolve().parents[2]
CLIENTS = TOOLS.parent / "clients-venv"
BLOCK = re.compile(r'^```(python|bash) title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SNIPPETS = {title: (kind, text) for kind, title, text in BLOCK.findall(PAGE)}
# What this project's environment has already.
OURS = {"InferenceClient", "transformers"}
PRINTED = {
    "LiteLLM": r"openai 2 768\nnvidia_nim 2 768\nhosted_vllm 2 768",
    "LangChain": r"2 768",
    "LlamaIndex": r"2\n768",
    "Chroma": r"\[\['a burger'\]\]",
    "LanceDB": r"a burger",
    "Qdrant": r"a burger",
    "InferenceClient": r"\(1, 768\)\nburger",
    "transformers": r"burger\n1",
    "perf_analyzer": r"(?s).*(Concurrency: 1, throughput: [\d.]+ infer/sec.*){2}",
}
# LiteLLM brings it for tiktoken, which LangChain uses.
VOCABULARY = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
# No client asks another host.
OFFLINE = {
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
}


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    """The vocabulary cl100k_base."""
    found = list(CLIENTS.glob(f"lib/*/site-packages/litellm/**/{VOCABULARY}"))
    if not found:
        miss("the clients are missing: run scripts/tools/clients.sh")
    return found[0]


@pytest.fixture(scope="module")
def bundled_service(run_service: Callable[..., Any], vocabulary: Path) -> "Iterator[Service]":
    """Service with the documentation's model, and the vocabulary of token ids."""
    package = open_package(ROOT / "model" / "bundled")
    with run_service(f"--token-vocabulary={vocabulary}", packages=(package,)) as running:
        yield running


@pytest.fixture
def run(
    bundled_service: "Service", vocabulary: Path, tmp_path: Path
) -> Callable[[str, str, bool], str]:
    """Run a snippet against the service; returns what it printed."""

    def snippet(kind: str, text: str, is_ours: bool) -> str:
        for name in ("examples", "model"):
            (tmp_path / name).symlink_to(ROOT / name)
        for name, port in (("8000", "http"), ("8001", "grpc")):
            text = text.replace(f"localhost:{name}", f"127.0.0.1:{bundled_service.ports[port]}")
        interpreter = sys.executable if is_ours else str(CLIENTS / "bin" / "python")
        command = [interpreter, "-c"] if kind == "python" else ["bash", "-euo", "pipefail", "-c"]
        variables = {"TIKTOKEN_CACHE_DIR": str(vocabulary.parent), "HOME": str(tmp_path), **OFFLINE}
        path = os.pathsep.join([str(TOOLS), os.environ["PATH"]])
        done = subprocess.run(
            [*command, text],
            cwd=tmp_path,
            env={"PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return snippet


@pytest.mark.parametrize("title", SNIPPETS)
def test_a_client_runs_its_example(run: Callable[..., str], title: str) -> None:
    kind, text = SNIPPETS[title]
    printed = run(kind, text, title in OURS)
    assert re.fullmatch(PRINTED[title], printed), printed


def test_langchain_works_with_its_defaults(run: Callable[..., str]) -> None:
    kind, text = SNIPPETS["LangChain"]
    lines = [line for line in text.splitlines() if "check_embedding_ctx_length" not in line]
    assert len(lines) == len(text.splitlines()) - 1
    assert run(kind, "\n".join(lines), False) == "2 768"
