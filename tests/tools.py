"""Finds command-line tools for tests. A missing tool skips the test locally and fails it in CI."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

TOOLS = Path(__file__).resolve().parents[1] / ".tools" / "bin"


def find_tool(name: str) -> str:
    """Return the path of a tool from `scripts/install_tools.sh` or from PATH."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        miss(f"{name} is missing: run scripts/install_tools.sh")
    return found


def miss(reason: str) -> NoReturn:
    """Skip the test with this reason, or fail it if CI is set."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
