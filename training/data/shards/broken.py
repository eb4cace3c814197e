"""Keeps account of broken samples: how many, which, and why; in the log and in a file."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenSample:
    """A sample that was passed over: where it lies and why."""

    place: str
    reason: str


class BrokenList:
    """The broken samples met so far, each once; in a file it outlives the run's restarts."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._places: set[str] = set()
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._places = {json.loads(line)["place"] for line in lines}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, samples: Iterable[BrokenSample]) -> None:
        """Log and write down those that are new."""
        for sample in samples:
            if sample.place in self._places:
                continue
            self._places.add(sample.place)
            _LOG.warning(
                "broken sample %d, passed over: %s: %s",
                len(self),
                sample.place,
                sample.reason,
            )
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(sample)) + "\n")
