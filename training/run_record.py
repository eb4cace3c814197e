"""`run.json`: everything that is needed to repeat a run, written at each of its starts.

A run may be resumed on another machine and with changed settings. The record is therefore a list of
starts, each with its configuration, command, code, versions, data, seeds and host.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from model.files import atomic_write

RECORD_FILE = "run.json"
FORMAT_VERSION = 1
_PACKAGES = ("torch", "torchvision", "transformers", "numpy", "safetensors", "tokenizers")
_GIT_TIMEOUT_S = 10


def as_json(value: object) -> Any:
    """A configuration as nested JSON; the class of a dataclass is its "kind"."""

    def plain(part: Any) -> Any:
        if is_dataclass(part):
            parts = {item.name: getattr(part, item.name) for item in fields(part)}
            return {"kind": type(part).__name__, **parts}
        return str(part)

    return json.loads(json.dumps(value, default=plain))


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def code_version() -> dict[str, Any]:
    """Commit of the code, and whether files differ from it; both None outside a checkout."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return {"commit": commit, "is_dirty": None if status is None else bool(status)}


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents of files, in order of their names; missing ones are skipped.

    Of a file above 64 MiB only the size and the first 64 MiB count, so that the digest is cheap for
    any size.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        if not path.is_file():
            continue
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            total.update(hashlib.sha256(file.read(1 << 26)).digest())
    return total.hexdigest()


def record_start(
    folder: Path,
    config: object,
    *,
    from_step: int,
    device: torch.device,
    num_ranks: int,
    data: Mapping[str, object],
) -> None:
    """Add a start to a run's record: its configuration, and what identifies its data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    versions = {name: metadata.version(name) for name in _PACKAGES}
    start = {
        "time": _now(),
        "command": shlex.join(sys.orig_argv),
        "from_step": from_step,
        "config": as_json(config),
        "code": code_version(),
        "versions": {"python": platform.python_version(), **versions},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "num_cpus": os.cpu_count(),
            "device": device.type,
            "device_name": name or platform.machine(),
            "num_ranks": num_ranks,
            "threads": torch.get_num_threads(),
        },
        "data": as_json(data),
    }
    path = folder / RECORD_FILE
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "run": folder.name, "starts": []}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    record["starts"].append(start)
    atomic_write(path, json.dumps(record, indent=1) + "\n")


def record_end(folder: Path) -> None:
    """Add the end time to a run's newest start."""
    path = folder / RECORD_FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    record["starts"][-1]["end"] = {"time": _now()}
    atomic_write(path, json.dumps(record, indent=1) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_configs(folder: Path) -> list[object]:
    """The configurations of a run's starts, in order.

    Raises:
        FileNotFoundError: The folder holds no run.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: no {RECORD_FILE}")
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    return [start["config"] for start in starts]
