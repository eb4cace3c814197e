"""A catalogue in miniature, and what is read of it."""

from pathlib import Path

import pytest

from tests.training.furniture import write_catalogue
from training.data.renders.catalogues import Furniture, read_catalogue


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box of two materials, standing and lying, and entries that cannot be read."""
    path = tmp_path_factory.mktemp("furniture") / "Test.sh3f"
    write_catalogue(path)
    return path


@pytest.fixture(scope="session")
def boxes(catalogue: Path) -> list[Furniture]:
    return list(read_catalogue(catalogue))
