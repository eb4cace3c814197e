"""The priority and the id that a caller may write, and the caller of its host."""

import pytest

from service.call import (
    DEFAULT_PRIORITY,
    NUM_CALLERS,
    Call,
    accept_priority,
    accept_request_id,
    caller_of,
)
from service.errors import InvalidRequest


def test_a_priority_is_a_known_level_or_the_default() -> None:
    assert accept_priority(None, param="x") == DEFAULT_PRIORITY
    assert [accept_priority(level, param="x") for level in ("1", "2", "3")] == [1, 2, 3]
    for given in ("0", "4", "", "high", "1.0", " 1", "-1", "\u0661"):
        with pytest.raises(InvalidRequest) as caught:
            accept_priority(given, param="X-Request-Priority")
        assert (caught.value.code, caught.value.param) == ("unknown_priority", "X-Request-Priority")


def test_an_id_that_is_too_long_or_not_one_printable_word_is_replaced() -> None:
    assert accept_request_id("mine") == "mine"
    for given in ("a" * 129, "a\nb", "a code=500", "\u00e9", "", None):
        assert len(accept_request_id(given)) == 32


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1"),
        ("2001:db8::1", "2001:db8::ffff:0:0:1"),
        ("fe80::1%eth0", "fe80::2"),
    ],
)
def test_addresses_of_one_host_are_one_caller(one: str, same: str) -> None:
    assert caller_of("http", one) == caller_of("http", same) != caller_of("grpc", one)


def test_hosts_have_callers_of_their_own_up_to_a_bound() -> None:
    hosts = [f"10.{n // 256}.{n % 256}.1" for n in range(5000)]
    callers = {caller_of("http", host) for host in [*hosts, "", "unix"]}
    assert NUM_CALLERS / 2 < len(callers) <= NUM_CALLERS


@pytest.mark.parametrize(
    ("timeout_s", "is_short"), [(0.012, True), (0.03, True), (0.06, True), (0.2, False)]
)
def test_a_deadline_below_the_unloaded_time_is_short(timeout_s: float, is_short: bool) -> None:
    call = Call(request_id="r", started=5.0, deadline=65.0, unloaded_s=0.055)
    call.shorten(5.0 + timeout_s)
    assert call.has_short_deadline == is_short


def test_the_deadline_of_the_server_is_not_the_callers() -> None:
    call = Call(request_id="r", started=5.0, deadline=65.0, unloaded_s=90.0)
    call.shorten(95.0)  # the caller would wait longer
    assert not call.has_short_deadline
    call.shorten(64.0)
    assert call.has_short_deadline
