"""How to install an extra here. Imports nothing, because it serves where packages are missing."""

from pathlib import Path
from typing import Final

IS_CLONE: Final = (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()


def install(extra: str) -> str:
    """The command that installs an extra, in a clone or from a package index."""
    return f"pip install -e '.[{extra}]'" if IS_CLONE else f"pip install 'tipserve[{extra}]'"
