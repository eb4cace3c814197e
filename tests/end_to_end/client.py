"""Calls a method of the client by its name; returns arrays by the item's number and their name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.processes.server import Place
from tipserve_client import Client

LIMIT_S = 120.0
Arrays = Mapping[str, NDArray[Any]]


def over_both(place: Place, method: str, given: Mapping[str, Any]) -> Arrays:
    """The arrays, which are the same over both protocols."""
    rest, rpc = over_rest(place, method, given), over_grpc(place, method, given)
    assert rest.keys() == rpc.keys()
    for name, array in rest.items():
        np.testing.assert_array_equal(array, rpc[name])
    return rest


def over_rest(place: Place, method: str, given: Mapping[str, Any]) -> Arrays:
    """The arrays over REST."""
    return _ask(place.rest, method, given)


def over_grpc(place: Place, method: str, given: Mapping[str, Any]) -> Arrays:
    """The arrays over gRPC."""
    return _ask(f"grpc://{place.grpc}", method, given)


def _ask(url: str, method: str, given: Mapping[str, Any]) -> Arrays:
    with Client(url, timeout_s=LIMIT_S) as client:
        items = getattr(client, method)(**given)
    return {
        f"{index}.{name}": array
        for index, item in enumerate(items)
        for name, array in _arrays_of(method, item).items()
    }


def _arrays_of(method: str, item: Any) -> dict[str, Any]:
    if isinstance(item, np.ndarray):
        return {{"embed_texts": "embedding"}.get(method, method): item}
    if isinstance(item, list):
        names = ("label", "probability", "cosine")
        return {name: np.array([getattr(one, name) for one in item]) for name in names}
    found = {field.name: getattr(item, field.name) for field in fields(item)}
    others = ("classes", "background_share", "instances")
    return {n: array for n, array in found.items() if array is not None and n not in others}
