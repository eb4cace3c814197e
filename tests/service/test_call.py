"""What a caller may write about a call: its priority and its id."""

import pytest

from service.call import DEFAULT_PRIORITY, accept_priority, accept_request_id
from service.errors import InvalidRequest


def test_a_priority_is_a_known_level_or_the_default() -> None:
    assert accept_priority(None, param="x") == DEFAULT_PRIORITY
    assert [accept_priority(level, param="x") for level in ("1", "2", "3")] == [1, 2, 3]


@pytest.mark.parametrize("given", ["0", "4", "", "high", "1.0", " 1", "-1", "\u0661"])
def test_any_other_priority_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        accept_priority(given, param="X-Request-Priority")
    assert (caught.value.code, caught.value.param) == ("unknown_priority", "X-Request-Priority")


def test_an_id_that_is_too_long_or_not_one_printable_word_is_replaced() -> None:
    assert accept_request_id("mine") == "mine"
    for given in ("a" * 129, "a\nb", "a code=500", "\u00e9", "", None):
        assert len(accept_request_id(given)) == 32
