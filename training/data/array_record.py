"""Arrays that belong together, in one file."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from model.files import atomic_file


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRecord:
    """Base of dataclasses whose fields are arrays or tuples of texts."""

    is_compressed: ClassVar[bool] = False

    def save(self, path: Path) -> None:
        """Write one file, which appears when it is complete."""
        write: Any = np.savez_compressed if self.is_compressed else np.savez
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            write(file, **values)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            values = {item.name: file[item.name] for item in fields(cls)}
        texts = {name: tuple(v.tolist()) for name, v in values.items() if v.dtype.kind == "U"}
        return cls(**{**values, **texts})

    @classmethod
    def kept(cls, path: Path, make: Callable[[], Self]) -> Self:
        """Read the file, or make the record and save it."""
        if not path.exists():
            make().save(path)
        return cls.load(path)
