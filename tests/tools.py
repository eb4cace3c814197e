"""Finds the command-line tools that tests run: a machine without one skips, CI fails."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

TOOLS = Path(__file__).resolve().parents[1] / ".tools" / "bin"


def find_tool(name: str) -> str:
    """The path of a tool that `scripts/install_tools.sh` installs, or that the machine has."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        miss(f"{name} is missing: run scripts/install_tools.sh")
    return found


def miss(reason: str) -> NoReturn:
    """Skip the test for this reason; where CI is set, in which nothing may be missing, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
