"""What a call may ask for in its headers, and what the server's own limits leave of it."""

from typing import Any, cast

import pytest

from service.call import Call
from service.rest.connection import CallLimits, CallMiddleware

NOTHING = cast("Any", None)


@pytest.mark.parametrize(
    ("asked_ms", "deadline"), [(b"2000", 102.0), (b"5000", 105.0), (b"60000", 105.0)]
)
def test_a_caller_may_wait_for_less_time_and_never_for_more(
    asked_ms: bytes, deadline: float
) -> None:
    limits = CallLimits(keys=NOTHING, timeout_s=5.0, body=NOTHING)
    call = Call(request_id="x", started=100.0, deadline=105.0)
    headers = {b"x-request-timeout-ms": asked_ms.decode()}
    CallMiddleware(NOTHING, NOTHING, limits)._apply_limits(call, headers)
    assert call.deadline == deadline
