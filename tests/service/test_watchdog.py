"""The watchdog reports each change once, and survives a failed poll."""

import threading
from unittest.mock import Mock

import pytest

from service.watchdog import Health, Watchdog


def test_only_changes_are_reported() -> None:
    health: dict[str, bool] = {"a": True, "b": True}
    reported: list[Health] = []
    watchdog = Watchdog(lambda: health, reported.append)
    watchdog.poll()
    assert reported == [], "a new healthy model is no change"
    for is_healthy in (False, False, True, False):
        health["b"] = is_healthy
        watchdog.poll()
    del health["b"]
    watchdog.poll()
    assert [report["b"] for report in reported] == [False, True, False]


def test_polling_continues_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.watchdog.TICK_S", 0.001)
    is_reported = threading.Event()
    # Of the start, a failed poll, and one that finds a change.
    read = Mock(side_effect=[{"a": True}, RuntimeError("not now"), {"a": False}, *[{}] * 9999])
    watchdog = Watchdog(read, lambda _: is_reported.set())
    watchdog.start()
    assert is_reported.wait(20)
    watchdog.stop()
