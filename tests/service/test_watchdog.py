"""The watchdog reports each change once, and survives a failed poll."""

import threading

import pytest

from service.watchdog import Health, Watchdog

WAIT_S = 20.0


def test_only_changes_are_reported() -> None:
    health: dict[str, bool] = {"a": True, "b": True}
    reported: list[Health] = []
    watchdog = Watchdog(lambda: health, reported.append)
    watchdog.poll()
    assert reported == [], "a new healthy model is no change"
    for is_healthy in (False, False, True):
        health["b"] = is_healthy
        watchdog.poll()
    assert [report["b"] for report in reported] == [False, True]
    health["b"] = False
    watchdog.poll()
    del health["b"]
    watchdog.poll()
    assert len(reported) == 3, "a removed model is no change"


def test_polling_continues_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.watchdog.TICK_S", 0.001)
    num_polls = 0
    again = threading.Event()

    def read_health() -> Health:
        nonlocal num_polls
        num_polls += 1
        if num_polls == 2:
            raise RuntimeError("not now")
        if num_polls == 4:
            again.set()
        return {}

    watchdog = Watchdog(read_health, lambda _: None)
    watchdog.start()
    assert again.wait(WAIT_S)
    watchdog.stop()
