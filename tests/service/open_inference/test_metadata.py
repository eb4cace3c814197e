"""Parameters of the model repository's calls."""

from typing import Any

import pytest

from service.errors import InvalidRequest
from service.open_inference.metadata import check_load, check_unload


def test_known_parameters_pass() -> None:
    assert check_load({}) is None
    assert check_load({"package": "a"}) == "a"
    check_unload({"unload_dependents": True})


@pytest.mark.parametrize(
    ("check", "parameters"),
    [
        *[(check_load, p) for p in ({"config": "{}"}, {"package": 5}, {"package": b"a"})],
        *[(check_unload, p) for p in ({"force": True}, {"unload_dependents": 1})],
    ],
)
def test_other_parameters_are_refused(check: Any, parameters: dict[str, object]) -> None:
    (name,) = parameters
    with pytest.raises(InvalidRequest) as caught:
        check(parameters)
    assert caught.value.param == f"parameters.{name}"
