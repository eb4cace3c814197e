"""Which errors concern the image of a request only."""

import pytest

from tipserve_cli.engines.engine import EngineError, ImageRefused, request_error


@pytest.mark.parametrize(
    ("param", "code", "kind"),
    [
        ("images[0]", "invalid_image", ImageRefused),
        ("image", "invalid_image", ImageRefused),
        (None, "request_too_large", ImageRefused),
        ("images", "empty_list", EngineError),
        ("classes", "too_many_items", EngineError),
        ("resolution", "invalid_field", EngineError),
        (None, "internal", EngineError),
    ],
)
def test_an_error_of_the_image_refuses_the_image_only(
    param: str | None, code: str, kind: type[Exception]
) -> None:
    error = request_error(f"{param}: broken", code, param)
    assert type(error) is kind
    assert str(error) == ("broken" if kind is ImageRefused and param else f"{param}: broken")
