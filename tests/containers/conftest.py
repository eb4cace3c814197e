"""Fixtures for the serving image, built once per test run.

The variable TEST_IMAGE names an existing local image to test instead.
"""

import os
from collections.abc import Iterator

import pytest

from tests.containers.engine import Engine
from tests.containers.image_build import build_image


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Tools that build and run images."""
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of the image of the Dockerfile's default target."""
    if ready := os.environ.get("TEST_IMAGE"):
        yield ready
        return
    tag = f"localhost/tipserve-test:{os.getpid()}"
    build_image(engine, tag, tmp_path_factory.mktemp("build"))
    yield tag
    # Layers stay cached for the next build.
    engine.podman("rmi", "--no-prune", tag)
