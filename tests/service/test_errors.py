"""Every error has a code in both transports, and messages fit into metadata."""

import pytest

from service import errors
from service.errors import ServiceError
from service.grpc.errors import CODE
from service.rest.errors import STATUS


def test_every_error_has_a_code_in_each_transport() -> None:
    assert set(STATUS) == set(CODE) == set(ServiceError.__subclasses__())


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u672c", "\U0001f436"])
def test_a_long_message_keeps_its_start_and_its_end(letter: str) -> None:
    error = errors.ModelNotFound(f"No model {letter * 2000} is served; there is: a.")
    assert error.message.startswith(f"No model {letter}")
    assert error.message.endswith(f"{letter} is served; there is: a.")
    assert len(error.message.encode()) <= errors.MAX_MESSAGE_BYTES + len(" ... ")
