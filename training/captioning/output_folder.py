"""The output folder of a captioning job: what its files are called and what they were made with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.captioning.report import write_json

_SETTINGS = "captions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """Names of files, for a shard of the input by its path."""

    path: Path

    def shard(self, source: Path) -> Path:
        """The shard with captions."""
        return self.path / source.name

    def report(self, source: Path) -> Path:
        """The side file, which is written last."""
        return self.path / f"{source.name}.report.json"

    def is_finished(self, source: Path) -> bool:
        """Whether nothing is left to do for a shard."""
        return self.report(source).exists()

    def journal(self, source: Path) -> Path:
        """The unfinished shard's outcomes."""
        return self.path / f"{source.name}.journal"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Write down what the captions depend on, or compare it with what was written down.

        Raises:
            ValueError: The folder was begun with other settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / _SETTINGS
        if not file.exists():
            write_json(file, settings)
        earlier = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings))
        changed = [f"{name}: {a!r}, now {b!r}" for name, a, b in _changes(earlier, now)]
        if changed:
            raise ValueError(
                f"{self.path} was begun with other settings ({'; '.join(changed)}); go on with "
                "those, or name another folder"
            )


def _changes(
    earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    changes: list[tuple[str, Any, Any]] = []
    for name in sorted({*earlier, *now}):
        a, b = earlier.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += _changes(a, b, f"{prefix}{name}.")
        elif a != b:
            changes.append((f"{prefix}{name}", a, b))
    return changes
