"""A comparison of batches."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from training.data.batch import Batch, TextBatch


@pytest.fixture(scope="session")
def is_same() -> Callable[[object, object], bool]:
    """Compare two batches, tensor by tensor; an optional part is None in both or in neither."""

    def compare(first: object, second: object) -> bool:
        if first is None or second is None:
            return first is second
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            return torch.equal(first, second)
        assert isinstance(first, Batch | TextBatch)
        return all(compare(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))

    return compare
