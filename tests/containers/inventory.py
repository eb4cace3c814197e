"""Runs with the image's Python and prints the image's contents as JSON."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path


def files(folder: str, pattern: str = "*") -> list[Path]:
    """All paths below a folder; none if it does not exist."""
    return list(Path(folder).rglob(pattern))


def file_bytes(folder: str) -> int:
    """Total bytes of the files below a folder."""
    return sum(os.path.getsize(path) for path in files(folder) if path.is_file())


def take(wanted: dict[str, str]) -> dict[str, object]:
    """Find which of these programs and modules exist, and the size of the folders."""
    return {
        "programs": [name for name in wanted["programs"].split() if shutil.which(name)],
        "modules": [name for name in wanted["modules"].split() if importlib.util.find_spec(name)],
        "pips": [str(path) for top in ("/usr", "/opt") for path in files(top, "*-packages/pip")],
        "folders": {name: file_bytes(name) for name in wanted["folders"].split()},
        "documents": {path.name: path.read_text() for path in files("/usr/share/doc/tipserve")},
    }


if __name__ == "__main__":
    print(json.dumps(take(json.loads(sys.argv[1]))))
