"""The serving image, built once in a run of tests.

Where the variable TEST_IMAGE names an image that is on this machine, that one is tested instead.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import Engine
from tests.containers.image_build import build_image


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """What builds and runs images."""
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the image that the Dockerfile makes by default."""
    if ready := os.environ.get("TEST_IMAGE"):
        yield ready
        return
    tag = f"localhost/tipserve-test:{os.getpid()}"
    build_image(engine, tag, tmp_path_factory.mktemp("build"))
    yield tag
    # Its layers stay for the next build.
    engine.podman("rmi", "--no-prune", tag)


@pytest.fixture(scope="session")
def scene(project_root: Path) -> bytes:
    """An image that the bundled model finds something in."""
    return (project_root / "examples" / "scene.png").read_bytes()
