"""The watchdog tells changes, once each, and outlives a look that fails."""

import threading

from service.watchdog import Health, Watchdog

WAIT_S = 20.0


def test_only_changes_are_told() -> None:
    seen: dict[str, bool] = {"a": True, "b": True}
    told: list[Health] = []
    dog = Watchdog(lambda: seen, told.append, 1000)
    dog.look_once()
    assert told == []
    seen["b"] = False
    dog.look_once()
    dog.look_once()
    assert told == [{"a": True, "b": False}]
    seen["b"] = True
    dog.look_once()
    assert told[1:] == [{"a": True, "b": True}]


def test_a_model_that_comes_well_is_no_news_and_one_that_goes_is_forgotten() -> None:
    seen = {"a": False}
    told: list[Health] = []
    dog = Watchdog(lambda: seen, told.append, 1000)
    dog.look_once()
    seen = {"b": True}
    dog.look_once()
    assert told == [{"a": False}]


def test_it_goes_on_after_a_look_that_fails() -> None:
    looks = 0
    again = threading.Event()

    def look() -> Health:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise RuntimeError("not now")
        if looks == 4:
            again.set()
        return {}

    dog = Watchdog(look, lambda _: None, 0.001)
    dog.start()
    assert again.wait(WAIT_S)
    dog.stop()


def test_one_that_never_began_can_be_stopped() -> None:
    Watchdog(dict, lambda _: None, 1.0).stop()
