"""A folder of built engines, shared by processes; each has a JSON file with its key and digest.

An engine whose key or digest differs is built again, and the log says why. Engines are loaded
without a lock, by any number of processes at once. One process builds at a time, since parallel
builds would disturb each other's timings.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.files import atomic_write, locked
from model.graphs import Part, Precision
from model.runtime.tensorrt.cuda import DeviceFacts, GpuError
from model.runtime.tensorrt.profiles import EngineOptions, Profile

LOGGER = logging.getLogger(__name__)
TIMINGS = "timing.cache"
LOCK = "build.lock"
# Raised when the code builds a different engine from the same key.
RECIPE = 2
Engine = TypeVar("Engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that an engine depends on; a cached engine is used only if all of it is equal.

    Attributes:
        device: GPU and libraries.
        part: Graph of the package.
        precision: Precision of the graph.
        graph_sha256: Digest of the graph and its weights; see `graph_digest`.
        profiles: Input shapes.
        options: Further options of the builder.
    """

    device: DeviceFacts
    part: Part
    precision: Precision
    graph_sha256: str
    profiles: Sequence[Profile]
    options: EngineOptions

    @property
    def name(self) -> str:
        """File name of the engine, without an ending: one for each graph."""
        return f"{self.part}_{self.precision}-{self.graph_sha256[:16]}"

    def facts(self) -> dict[str, Any]:
        """The key as JSON, for the engine's record."""
        profiles = [
            {name: asdict(shapes) for name, shapes in sorted(profile.items())}
            for profile in self.profiles
        ]
        document = {
            "recipe": RECIPE,
            **asdict(self.device),
            "part": self.part,
            "precision": self.precision,
            "graph_sha256": self.graph_sha256,
            "profiles": profiles,
            "options": asdict(self.options),
        }
        facts: dict[str, Any] = json.loads(json.dumps(document))
        return facts


def differences(found: Any, wanted: dict[str, Any]) -> str:
    """Describe how a cached key differs from the wanted one; empty if it does not."""
    if not isinstance(found, dict):
        return "nothing says what it was made from"
    changed = [name for name in wanted if name not in found or found[name] != wanted[name]]
    changed += [name for name in found if name not in wanted]
    short = [
        f"{name} is {wanted.get(name)!r} and was {found.get(name)!r}"
        if isinstance(wanted.get(name), str | int)
        else f"{name} changed"
        for name in changed
    ]
    return "; ".join(short)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A new engine as bytes, and the timing cache for the next build."""

    plan: bytes
    timings: bytes


class EngineCache:
    """A folder of engines; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created on the first write."""
        self._folder = folder.expanduser()

    def plan_file(self, key: EngineKey) -> Path:
        """Path of the engine of a key."""
        return self._folder / key.device.folder / f"{key.name}.plan"

    def load_or_build(
        self,
        key: EngineKey,
        *,
        load: Callable[[bytes], Engine | None],
        build: Callable[[bytes], BuiltEngine],
    ) -> Engine:
        """Load the engine of a key; build it if it is missing or stale.

        Args:
            key: Everything that the engine depends on.
            load: Loads an engine; None if the library refuses it.
            build: Builds an engine, given earlier timings.

        Raises:
            OSError: The folder cannot be written.
            GpuError: The library refuses the new engine.
        """
        path = self.plan_file(key)
        engine, _ = _load(path, key, load)
        if engine is not None:
            return engine
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path.parent / LOCK, on_wait=_log_wait):
            # Another process may have built it meanwhile.
            engine, reason = _load(path, key, load)
            if engine is not None:
                return engine
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


def _load(
    path: Path, key: EngineKey, load: Callable[[bytes], Engine | None]
) -> tuple[Engine | None, str]:
    """Load the cached engine; None and the reason if it cannot be used."""
    plan, reason = _read(path, key)
    if plan is None:
        return None, reason
    engine = load(plan)
    if engine is None:
        return None, "TensorRT refuses it"
    LOGGER.info("using the TensorRT engine %s", path)
    return engine, ""


def _log_wait(holder: str) -> None:
    LOGGER.info("waiting for %s, which builds TensorRT engines", holder)


def _read(path: Path, key: EngineKey) -> tuple[bytes | None, str]:
    """The cached engine, or None and the reason."""
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
    # The engine first: the digest in the old note does not match it, so a crash here is safe.
    atomic_write(path, plan)
    note = {"key": key.facts(), "sha256": hashlib.sha256(plan).hexdigest()}
    atomic_write(_note_file(path), json.dumps(note, indent=1).encode())


def _note_file(path: Path) -> Path:
    return path.with_suffix(".json")
