"""The examples of the documentation run unchanged, and give what the pages say.

Blocks marked `bash` and `python` are run. Blocks marked `sh` install software, start servers or
need a cluster; no test runs them. Blocks with a title in docs/clients.md are run with clients of
other projects, as published, which are installed apart: `scripts/tools/clients.sh`.
"""

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from model.package import ModelPackage, open_package
from tests.end_to_end.conftest import RunService
from tests.processes.server import ROOT, Server
from tests.tools import TOOLS, find_tool, miss, run

LIMIT_S = 240.0
PAGES = ("README.md", "docs/quickstart.md", "docs/api.md", "docs/clients.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(kind, text, id=f"{page}-{number}")
    for page in PAGES
    for number, (kind, text) in enumerate(BLOCK.findall(TEXTS[page]))
    if not text.startswith("# ")
]
# A line of curl after a comment, which names its answer.
CURL = re.compile(r"^# (?P<answer>.+)\n(?P<line>curl -.+)$", re.MULTILINE)
CURL_EXAMPLES = CURL.findall(TEXTS["docs/api.md"])

TITLED = re.compile(r'^```(python|bash) title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SNIPPETS = {title: (kind, text) for kind, title, text in TITLED.findall(TEXTS["docs/clients.md"])}
CLIENTS = TOOLS.parent / "clients-venv"
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


def run_example(server: Server, kind: str, text: str, folder: Path, **variables: str) -> str:
    """Run a block of a page in a folder against a server; returns what it printed.

    The block finds `examples/`, `model/` and the tools in the folder; `python` may name another
    interpreter.
    """
    for name in ("README.md", "examples", "model", ".tools"):
        (folder / name).symlink_to(ROOT / name)
    # curl reads it from CURL_HOME; without it an error status would not fail the example.
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n", encoding="utf-8")
    for name, port in (("8000", "http"), ("8001", "grpc")):
        text = text.replace(f"localhost:{name}", f"127.0.0.1:{server.ports[port]}")
    python = [variables.pop("python", sys.executable), "-c"]
    command = python if kind == "python" else ["bash", "-euo", "pipefail", "-c"]
    scripts = (str(Path(sys.executable).parent), str(TOOLS), os.environ["PATH"])
    sources = (str(ROOT), str(ROOT / "clients" / "python"))
    paths = {"PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(sources)}
    environment = {**os.environ, **paths, "CURL_HOME": str(folder), **variables}
    done = run(*command, text, cwd=folder, env=environment, timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_an_example_runs(bundled_service: Server, tmp_path: Path, kind: str, text: str) -> None:
    for tool in ("buf", "curl"):
        if f"{tool} " in text:
            find_tool(tool)
    run_example(bundled_service, kind, text, tmp_path)


@pytest.fixture(scope="module")
def dense_service(run_service: RunService, dense_package: ModelPackage) -> Iterator[Server]:
    """Service with a package that supports every route."""
    with run_service(packages=(dense_package,)) as running:
        yield running


def count(name: str, content: bytes) -> int:
    """Count the arrays, entries or images of a file; fails if it is damaged."""
    match Path(name).suffix:
        case ".json":
            return len(json.loads(content)["data"])
        case ".npy":
            return len(np.load(io.BytesIO(content), allow_pickle=False))
        case ".safetensors":
            return len(load(content))
        case ".png":
            Image.open(io.BytesIO(content)).load()
            return 1
    raise AssertionError(f"{name} has an unknown type")


@pytest.mark.parametrize(("answer", "line"), CURL_EXAMPLES, ids=[name for name, _ in CURL_EXAMPLES])
def test_a_line_of_curl_gives_the_file_that_it_names(
    dense_service: Server, tmp_path: Path, answer: str, line: str
) -> None:
    find_tool("curl")
    run_example(dense_service, "bash", line, tmp_path)
    written = tmp_path / shlex.split(line)[-1]
    assert count(written.name, written.read_bytes()) > 0


@pytest.mark.parametrize(
    ("index", "classes", "labels"),
    [
        (0, "squirrel", {(240, 200): 1, (300, 150): 1, (10, 10): 0, (470, 10): 0, (470, 370): 0}),
        (1, "burger,sunflower,open%20book", {(298, 107): 1, (98, 305): 2, (320, 320): 3}),
    ],
)
def test_the_first_examples_find_what_they_name(
    bundled_service: Server,
    tmp_path: Path,
    index: int,
    classes: str,
    labels: dict[tuple[int, int], int],
) -> None:
    line = CURL_EXAMPLES[index][1]
    assert f"segment?classes={classes}'" in line
    run_example(bundled_service, "bash", line, tmp_path)
    mask_HW = np.asarray(Image.open(tmp_path / "mask.png"))
    assert {(x, y): mask_HW[y, x] for x, y in labels} == labels


def test_the_examples_have_every_route_and_every_format() -> None:
    lines = " ".join(line for _, line in CURL_EXAMPLES)
    routes = ("embed", "segment", "classify", "features", "depth", "normals")
    for route in ("/v1/texts:embed", *(f"/v1/images:{route}" for route in routes)):
        assert route in lines
    kinds = {Path(line.split()[-1]).suffix for _, line in CURL_EXAMPLES}
    assert kinds == {".png", ".npy", ".safetensors", ".json"}
    names = [str(example.id) for example in EXAMPLES]
    assert all(any(name.startswith(page) for name in names) for page in PAGES)


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    """The vocabulary cl100k_base."""
    found = list(CLIENTS.glob(f"lib/*/site-packages/litellm/**/{VOCABULARY}"))
    if not found:
        miss("the clients are missing: run scripts/tools/clients.sh")
    return found[0]


@pytest.fixture(scope="module")
def ask_by_client(
    run_service: RunService, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], str]]:
    """Run a client's example, changed or not, against a service that knows token ids."""
    package = open_package(ROOT / "model" / "bundled")
    with run_service(f"--token-vocabulary={vocabulary}", packages=(package,)) as running:

        def ask(title: str, text: str) -> str:
            folder = tmp_path_factory.mktemp("client")
            variables = {"TIKTOKEN_CACHE_DIR": str(vocabulary.parent), "HOME": str(folder)}
            if title not in OURS:
                variables |= {"python": str(CLIENTS / "bin" / "python"), "PYTHONPATH": ""}
            given = {**OFFLINE, **variables}
            printed = run_example(running, SNIPPETS[title][0], text, folder, **given)
            return printed

        yield ask


@pytest.mark.parametrize("title", SNIPPETS)
def test_a_client_runs_its_example(ask_by_client: Callable[..., str], title: str) -> None:
    printed = ask_by_client(title, SNIPPETS[title][1])
    assert re.fullmatch(PRINTED[title], printed), printed


def test_langchain_works_with_its_defaults(ask_by_client: Callable[..., str]) -> None:
    lines = SNIPPETS["LangChain"][1].splitlines()
    kept = [line for line in lines if "check_embedding_ctx_length" not in line]
    assert len(kept) == len(lines) - 1
    assert ask_by_client("LangChain", "\n".join(kept)) == "2 768"
