"""Servers of the tiny package, and images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from model.package import BUNDLED_FOLDER, ModelPackage, open_package
from tests.processes.server import Server, start_server
from tests.processes.server import photo as smooth_photo

RunService = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def run_service(tiny_package: ModelPackage) -> RunService:
    """Start a server with the tiny package, or others, and these flags; as a context."""

    def run(
        *flags: str, packages: Sequence[ModelPackage] = (tiny_package,), **options: Any
    ) -> AbstractContextManager[Server]:
        models = ",".join(str(package.path) for package in packages)
        return start_server(f"--model={models}", *flags, **options)

    return run


@pytest.fixture(scope="session")
def service(run_service: RunService) -> Iterator[Server]:
    """One server shared by tests that only send requests."""
    with run_service("--max-request-bytes=2000000", "--max-image-bytes=1000000") as running:
        yield running


@pytest.fixture(scope="session")
def bundled_service(run_service: RunService) -> Iterator[Server]:
    """A server with the model that the documentation's examples use."""
    with run_service(packages=(open_package(BUNDLED_FOLDER),)) as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """Create a smooth JPEG by seed and size."""

    def make(seed: int = 0, size: tuple[int, int] = (90, 60), file_format: str = "JPEG") -> bytes:
        return smooth_photo(seed, size, file_format)

    return make
