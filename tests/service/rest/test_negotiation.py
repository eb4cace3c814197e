"""Which media type an Accept header chooses."""

import pytest

from service.errors import NotAcceptable
from service.rest.responses import JSON, NPY, PNG, SAFETENSORS, choose_media

OFFERED = (JSON, NPY, SAFETENSORS, PNG)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("application/x-npy;q=0.5, application/json;q=0.4", NPY),
        ("text/html, image/png", PNG),
        ("*/*;q=0.1, application/octet-stream", SAFETENSORS),
        ("application/json;q=0, */*", NPY),
        ("application/json;q=x, image/png", PNG),
    ],
)
def test_the_best_of_what_is_offered(accept: str | None, media: str) -> None:
    assert choose_media(accept, OFFERED) == media


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/jpeg"])
def test_nothing_that_is_offered(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png"):
        choose_media(accept, OFFERED)
