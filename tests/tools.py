"""Finds and runs programs for tests. A missing one skips the test locally and fails it in CI."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

TOOLS = Path(__file__).resolve().parents[1] / ".tools" / "bin"


def find_tool(name: str) -> str:
    """Return the path of a tool from `scripts/install_tools.sh` or from PATH."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        miss(f"{name} is missing: run scripts/install_tools.sh")
    return found


def run(
    *command: str | Path, timeout_s: float = 60.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its status and output, whatever the status is.

    Args:
        command: The program's name or path, and its arguments.
        timeout_s: Seconds after which it is ended, and the test fails.
        options: Those of `subprocess.run`, such as `cwd` and `env`.
    """
    program, *arguments = map(str, command)
    words = [find_tool(program), *arguments]
    return subprocess.run(
        words, capture_output=True, check=False, text=True, timeout=timeout_s, **options
    )


def miss(reason: str) -> NoReturn:
    """Skip the test with this reason, or fail it if CI is set."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
