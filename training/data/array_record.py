"""Arrays that belong together, in one file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np

from model.files import atomic_file


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRecord:
    """Base of dataclasses whose fields are arrays."""

    def save(self, path: Path) -> None:
        """Write one file, which appears when it is complete."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{item.name: file[item.name] for item in fields(cls)})
