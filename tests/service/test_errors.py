"""Every kind of error has its place in both transports."""

import pytest

from service import errors
from service.errors import ErrorKind, ServiceError
from service.grpc.errors import CODE
from service.rest.errors import STATUS


def all_errors() -> list[type[ServiceError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ServiceError) and value is not ServiceError
    ]


def test_every_kind_is_translated() -> None:
    assert set(STATUS) == set(CODE) == set(ErrorKind)


def test_every_kind_has_one_error_and_every_error_is_drawn() -> None:
    kinds = [error.kind for error in all_errors()]
    assert sorted(kinds, key=str) == sorted(ErrorKind, key=str)
    assert all(error.__name__ in (errors.__doc__ or "") for error in all_errors())


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u672c", "\U0001f436"])
def test_a_message_that_quotes_too_much_keeps_its_beginning_and_its_end(letter: str) -> None:
    error = errors.ModelNotFound(f"No model {letter * 2000} is served; there is: a.")
    assert error.message.startswith(f"No model {letter}")
    assert error.message.endswith(f"{letter} is served; there is: a.")
    assert len(error.message.encode()) <= errors.MAX_MESSAGE_BYTES + len(" ... ")


def test_an_internal_error_tells_only_an_id() -> None:
    assert "abc123" in errors.internal_error("abc123").message
