"""The text cache is bounded and forgets what was not used for longest."""

import numpy as np

from service.observability import Metrics
from service.text_cache import TextCache


def vector(value: float) -> "np.typing.NDArray[np.float32]":
    return np.array([value], np.float32)


def test_the_least_recently_used_goes_first(metrics: Metrics) -> None:
    cache = TextCache(2, metrics)
    cache.add({"a": vector(1), "b": vector(2)})
    assert set(cache.find(["a"])) == {"a"}
    cache.add({"c": vector(3)})
    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}
    assert len(cache) == 2


def test_hits_and_misses_are_counted_once_for_each_prompt(metrics: Metrics) -> None:
    cache = TextCache(2, metrics)
    cache.add({"a": vector(1)})
    cache.find(["a", "a", "b"])
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_text_cache_hits_total") == 1
    assert sample("tipserve_text_cache_misses_total") == 1
