"""The watchdog reports each change once, and survives a failed poll."""

import threading

from service.watchdog import Health, Watchdog

WAIT_S = 20.0


def test_only_changes_are_reported() -> None:
    health: dict[str, bool] = {"a": True, "b": True}
    reported: list[Health] = []
    dog = Watchdog(lambda: health, reported.append, 1000)
    dog.poll()
    assert reported == []
    health["b"] = False
    dog.poll()
    dog.poll()
    assert reported == [{"a": True, "b": False}]
    health["b"] = True
    dog.poll()
    assert reported[1:] == [{"a": True, "b": True}]


def test_a_new_healthy_model_and_a_removed_one_are_not_reported() -> None:
    health = {"a": False}
    reported: list[Health] = []
    dog = Watchdog(lambda: health, reported.append, 1000)
    dog.poll()
    health = {"b": True}
    dog.poll()
    assert reported == [{"a": False}]


def test_polling_continues_after_a_failure() -> None:
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

    dog = Watchdog(read_health, lambda _: None, 0.001)
    dog.start()
    assert again.wait(WAIT_S)
    dog.stop()


def test_a_watchdog_that_never_started_can_be_stopped() -> None:
    Watchdog(dict, lambda _: None, 1.0).stop()
