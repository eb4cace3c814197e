"""Three servers shared by all promises, with their precision fixed."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.processes.server import Server, start_server

FILES = Path(__file__).parent / "files"
STUDENT = (
    "--model=bundled-student",
    "--precision=fp32",
    "--runtime=onnx",
    "--lanes=2",
    f"--heads={FILES}",
    f"--token-vocabulary={FILES / 'tokens.tiktoken'}",
)
# For tests of load, which ask for the same image again and again.
UNCACHED = (*STUDENT, "--image-cache-bytes=0")
DEFAULT = ("--model=bundled", "--precision=int8", "--runtime=onnx")
KEY, LIMITED_KEY = "the-key-of-a-caller", "the-key-of-a-limited-caller"
ONE_AT_ONCE_KEY = "the-key-of-one-at-a-time"
KEYS = f"{KEY} name=plain\n{LIMITED_KEY} name=limited requests_per_s=1 requests_at_once=1\n"
KEYS += f"{ONE_AT_ONCE_KEY} name=one requests_at_once=1\n"


@pytest.fixture(scope="session")
def student() -> Iterator[Server]:
    """The small bundled model in fp32."""
    with start_server(*UNCACHED) as server:
        yield server


@pytest.fixture(scope="session")
def default() -> Iterator[Server]:
    """The default model in int8."""
    with start_server(*DEFAULT) as server:
        yield server


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The small model with API keys, a trusted proxy and small limits."""
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS)
    flags = (f"--api-keys-file={keys}", "--trusted-proxies=127.0.0.1")
    limits = ("--max-request-bytes=2000000", "--max-image-bytes=1000000", "--request-timeout-s=20")
    with start_server(*STUDENT, *flags, *limits) as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the shared servers' logs with a failed test."""
    report = yield
    if report.failed and report.when == "call":
        for name, server in item.funcargs.items():
            if isinstance(server, Server):
                report.sections.append((f"log of {name}", server.log_tail()))
    return report
