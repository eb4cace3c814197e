"""Keeps built engines and the builder's timings in a folder that processes share.

Each engine has a JSON file beside it with what it was made from and its own digest. An engine that
was made from something else, or is not what was written, is built again, and the log says why. One
process builds at a time: two would disturb each other's timings. Knows no TensorRT.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.files import atomic_write, locked
from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.engine_key import EngineKey, differences

Engine = TypeVar("Engine")
LOGGER = logging.getLogger(__name__)
TIMINGS = "timing.cache"
LOCK = "build.lock"


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a builder gives back: the engine as bytes, and its timings for the next build."""

    plan: bytes
    timings: bytes


class EngineCache:
    """A folder of engines; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when something is written."""
        self._folder = folder.expanduser()

    def plan_file(self, key: EngineKey) -> Path:
        """Where the engine for a key is kept."""
        return self._folder / key.device.folder / f"{key.name}.plan"

    def load_or_build(
        self,
        key: EngineKey,
        *,
        load: Callable[[bytes], Engine | None],
        build: Callable[[bytes], BuiltEngine],
    ) -> Engine:
        """Give the engine for a key.

        Args:
            key: What it must have been made from.
            load: Reads an engine; None where the library refuses it.
            build: Makes an engine, given earlier timings.

        Raises:
            OSError: The folder cannot be written.
            GpuError: The library refuses what it has just built.
        """
        path = self.plan_file(key)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path.parent / LOCK, on_wait=_log_wait):
            plan, reason = _read(path, key)
            if plan is not None:
                engine = load(plan)
                if engine is not None:
                    LOGGER.info("using the TensorRT engine %s", path)
                    return engine
                reason = "TensorRT refuses it"
            LOGGER.info("building the TensorRT engine %s, which may take minutes: %s", path, reason)
            timings = path.parent / TIMINGS
            built = build(timings.read_bytes() if timings.is_file() else b"")
            engine = load(built.plan)
            if engine is None:
                raise GpuError(
                    f"TensorRT cannot load the engine that it built for the {key.part} graph; the "
                    "log above says why. Another version of TensorRT or of the driver may help"
                )
            _write(path, built.plan, key)
            atomic_write(timings, built.timings)
        return engine


def _log_wait(holder: str) -> None:
    LOGGER.info("waiting for %s, which builds TensorRT engines", holder)


def _read(path: Path, key: EngineKey) -> tuple[bytes | None, str]:
    """A kept engine that may be used, or why there is none."""
    try:
        note: Any = json.loads(_note_file(path).read_bytes())
        plan = path.read_bytes()
    except FileNotFoundError:
        return None, "there is none yet"
    except (OSError, ValueError) as error:
        return None, f"the kept one cannot be read ({error})"
    if not isinstance(note, dict) or "sha256" not in note:
        return None, "nothing says what the kept one is"
    changed = differences(note.get("key"), key.facts())
    if changed:
        return None, f"the kept one was made from something else: {changed}"
    if hashlib.sha256(plan).hexdigest() != note["sha256"]:
        return None, "the kept one is not the file that was written (SHA-256)"
    return plan, ""


def _write(path: Path, plan: bytes, key: EngineKey) -> None:
    """The engine first: until the new note is there, the old one does not vouch for it."""
    atomic_write(path, plan)
    note = {"key": key.facts(), "sha256": hashlib.sha256(plan).hexdigest()}
    atomic_write(_note_file(path), json.dumps(note, indent=1).encode())


def _note_file(path: Path) -> Path:
    return path.with_suffix(".json")
