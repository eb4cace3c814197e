"""Which of the offered media types the caller accepts."""

from functools import lru_cache
from typing import Final

from service.errors import NotAcceptable

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/octet-stream"
PNG: Final = "image/png"


@lru_cache(256)
def choose_media(accept: str | None, offered: tuple[str, ...]) -> str:
    """The offered media type that the caller likes best.

    Args:
        accept: The `Accept` header; none accepts everything.
        offered: In the server's order of preference, for wildcards and equal weights.

    Raises:
        NotAcceptable: None of them is accepted.
    """
    wishes = [_parse(part) for part in (accept or "*/*").split(",") if part.strip()]
    best, best_weight = "", 0.0
    for media in offered:
        matching = [(_rank(pattern), weight) for pattern, weight in wishes if _fits(pattern, media)]
        # The most specific pattern that fits decides, as RFC 9110 has it.
        weight = max(matching)[1] if matching else 0.0
        if weight > best_weight:
            best, best_weight = media, weight
    if not best:
        raise NotAcceptable(f"The answer can be written as {', '.join(offered)}; accept one.")
    return best


def _parse(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
    return media, weight


def _fits(pattern: str, media: str) -> bool:
    return pattern in {"*/*", media, f"{media.split('/', maxsplit=1)[0]}/*"}


def _rank(pattern: str) -> int:
    return 2 - pattern.count("*")
