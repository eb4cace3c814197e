"""Parameters of the model repository's calls."""

import pytest

from service.errors import InvalidRequest
from service.open_inference.metadata import check_load, check_unload


def test_good_ones_pass() -> None:
    assert check_load({}) is None
    assert check_load({"package": "a"}) == "a"
    check_unload({"unload_dependents": True})


@pytest.mark.parametrize("parameters", [{"config": "{}"}, {"package": 5}, {"package": b"a"}])
def test_others_do_not(parameters: dict[str, object]) -> None:
    (name,) = parameters
    with pytest.raises(InvalidRequest) as caught:
        check_load(parameters)
    assert caught.value.param == f"parameters.{name}"


def test_nothing_else_is_known_of_an_unload() -> None:
    for parameters in ({"force": True}, {"unload_dependents": 1}):
        with pytest.raises(InvalidRequest):
            check_unload(parameters)
