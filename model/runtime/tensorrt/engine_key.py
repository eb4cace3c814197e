"""What an engine depends on: with all of it equal, a kept engine may be used instead of a new one.

An engine is compiled for one GPU model, one TensorRT version and one graph. Knows no TensorRT.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from model.graphs import Part, Precision
from model.manifest import Manifest
from model.runtime.tensorrt.libraries import DeviceFacts
from model.runtime.tensorrt.options import EngineOptions
from model.runtime.tensorrt.profiles import Profile

# Raised when engines are built differently from the same ingredients.
RECIPE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that an engine was made from.

    Attributes:
        device: For which and with which library.
        part: Which graph.
        precision: Of the graph's arithmetic.
        graph_sha256: Over the graph's file and the files with its weights.
        profiles: The shapes it is built for.
        options: The builder's other options.
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
        """The key as JSON has it, for the file beside the engine."""
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
    """In words, how a kept key differs from the one that is wanted; empty where it does not."""
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


def graph_digest(manifest: Manifest, file: str) -> str:
    """SHA-256 over a graph and whatever may hold its weights, from the manifest's digests.

    Weights outside the graph lie in its folder under names that only the graph knows. All files
    there that are no graphs count, so that an engine is at worst built once too often.
    """
    folder = PurePosixPath(file).parent
    counted = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name == file or (PurePosixPath(name).parent == folder and not name.endswith(".onnx"))
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
