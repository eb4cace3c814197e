"""Whether two answers hold the same."""

from dataclasses import fields
from typing import Any

import numpy as np


def assert_equal(found: Any, expected: Any) -> None:
    """The same arrays and values, also inside of dataclasses and lists."""
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(found) is type(expected)
        for field in fields(expected):
            assert_equal(getattr(found, field.name), getattr(expected, field.name))
    else:
        np.testing.assert_array_equal(found, expected)
