"""What several runtimes hold is loaded once, and freed when the last lets go."""

import gc
import threading

from model.runtime.shelf import Shelf


class Graph:
    """Something that can be held."""


def test_all_get_the_one_that_was_loaded() -> None:
    shelf, made = Shelf(), []

    def load() -> Graph:
        made.append(threading.get_ident())
        return Graph()

    held: list[Graph] = []
    threads = [
        threading.Thread(target=lambda: held.append(shelf.take("key", load))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(graph is held[0] for graph in held)
    assert shelf.take("other", load) is not held[0]


def test_what_nobody_holds_is_gone() -> None:
    shelf = Shelf()
    first = shelf.take("key", Graph)
    number = id(first)
    assert id(shelf.take("key", Graph)) == number
    del first
    gc.collect()
    made: list[bool] = []

    def load() -> Graph:
        made.append(True)
        return Graph()

    shelf.take("key", load)
    assert made


def test_what_was_removed_is_loaded_anew_and_only_that() -> None:
    shelf = Shelf()
    broken = shelf.take("key", Graph)
    shelf.remove("key", broken)
    fresh = shelf.take("key", Graph)
    assert fresh is not broken
    shelf.remove("key", broken)  # by another lane that broke on the same
    assert shelf.take("key", Graph) is fresh
