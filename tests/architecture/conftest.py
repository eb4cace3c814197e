"""Lists of the project's files for the architecture tests."""

import subprocess
from pathlib import Path

import pytest

GENERATED = ("service/grpc/generated/", "clients/python/tipserve_client/generated/")
SOURCE_ROOMS = (
    *("service/", "model/", "training/", "tipserve_cli/", "connectors/"),
    *("tests/", "benchmarks/", "clients/"),
)


@pytest.fixture(scope="session")
def project_files(project_root: Path) -> list[Path]:
    """Files that git tracks or would add, relative to the root, without ignored ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=project_root, check=True, capture_output=True, text=True)
    names = {name for name in listing.stdout.split("\0") if name}
    return sorted(Path(name) for name in names if (project_root / name).is_file())


@pytest.fixture(scope="session")
def python_files(project_files: list[Path]) -> list[Path]:
    """Hand-written Python files of all top-level packages, relative to the root."""
    return [
        path
        for path in project_files
        if path.suffix == ".py"
        and path.as_posix().startswith(SOURCE_ROOMS)
        and not path.as_posix().startswith(GENERATED)
    ]
