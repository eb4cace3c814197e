"""What refers only to itself is collected, and free pages are handed back."""

import ctypes
import weakref
from types import SimpleNamespace

import pytest

from service.lanes.machine import give_back_memory


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.ring = self


def test_rings_of_references_are_freed() -> None:
    ring = Ring()
    seen = weakref.ref(ring)
    del ring
    give_back_memory()
    assert seen() is None


def test_a_c_library_without_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_back_memory()
