"""Parameters of an inference request."""

from typing import Any

import pytest

from service.call import Call
from service.errors import InvalidRequest
from service.open_inference.inference import Parameters, read_parameters

WRONG: dict[str, list[Any]] = {
    "timeout": [-1, "5", True, 2**63],
    "priority": [4, -1, 1.0],
    "resolution": [0, False],
    "fit": ["stretch", 1],
    "normalize": [1, "true"],
    "templates": ["other"],
    "output_datatype": ["FP16"],
    "sequence_id": [1],
    "": [1],
}


def test_a_timeout_is_in_microseconds_and_only_shortens() -> None:
    call = Call(request_id="r", deadline=7.0, started=5.0)
    read_parameters(Parameters, {"timeout": 9_000_000, "priority": 1}).apply(call)
    assert (call.deadline, call.priority) == (7.0, 1)
    read_parameters(Parameters, {"timeout": 500_000}).apply(call)
    assert call.deadline == 5.5


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_a_wrong_parameter_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_parameters(Parameters, {name: value})
    assert caught.value.param == f"parameters.{name}"
