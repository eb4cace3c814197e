"""Hostile bodies over REST: JSON, forms, and images in every form of a body."""

import base64
import json
import random
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.hostile.attack import Attack, Broken, Send, attacks
from tests.hostile.images import Draw, draws
from tests.hostile.wire import check_error

Form = tuple[str, bytes, dict[str, str]]

BODY_STATUSES: Final = frozenset({"200", "404", "406", "413", "415", "422", "429"})
IMAGE_STATUSES: Final = frozenset({"200", "413", "422", "429"})
TARGETS: Final = ("/v1/images:embed", "/v1/texts:embed", "/v1/images:segment")
NPY: Final = "application/x-npy"


def ask(client: httpx.Client, target: str, body: bytes, media: dict[str, str]) -> httpx.Response:
    """POST a body and read the whole answer.

    Raises:
        TimeoutError: It did not arrive in time.
        ConnectionError: The server closed the connection instead, twice.
        Broken: An error in another form than ours.
    """
    for attempt in (0, 1):
        try:
            response = client.post(target, content=body, headers=media)
            break
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.TransportError as error:
            # The server may close a kept connection just when it is used again.
            if attempt:
                raise ConnectionResetError(str(error)) from error
    check_error(str(response.status_code), response.content)
    return response


def body_attacks(client: httpx.Client, limit_s: float) -> list[Attack]:
    """JSON and forms that are wrong inside, to any route."""

    def send(make: Draw, media: tuple[str, ...], rng: random.Random, _: float) -> str:
        headers = {"Content-Type": rng.choice(media)}
        return str(ask(client, rng.choice(TARGETS), make(rng), headers).status_code)

    json_media = ("application/json",)
    sends: dict[str, Send] = {
        "rest broken JSON": partial(
            send, broken_json, (*json_media, "APPLICATION/JSON; charset=x")
        ),
        "rest long JSON": partial(send, long_json, json_media),
        "rest odd words": partial(send, odd_words, json_media),
        "rest forms": partial(send, form, FORM_MEDIA),
    }
    return attacks(sends, BODY_STATUSES, limit_s)


def image_attacks(client: httpx.Client, limit_s: float) -> list[Attack]:
    """Every kind of image in every form of a body."""

    def send(draw: Draw, rng: random.Random, _: float) -> str:
        answer = ask(client, *rng.choice(FORMS)(draw(rng), rng))
        if answer.headers["content-type"] == NPY:
            check_finite(np.load(BytesIO(answer.content), allow_pickle=False))
        return str(answer.status_code)

    sends: dict[str, Send] = {f"rest {kind}": partial(send, draw) for kind, draw in draws().items()}
    return attacks(sends, IMAGE_STATUSES, limit_s)


def check_finite(values: NDArray[Any]) -> None:
    """Raise `Broken` for NaN or infinity in an answer."""
    if not np.isfinite(values).all():
        raise Broken("an answer is not finite")


# JSON and forms.

WORDS: Final = (
    "a",
    " ",
    "\0",
    "\ud83d\udc36" * 50,
    "\u202e\u0301" * 100,
    "e" + "\u0301" * 1999,
    "x" * 2001,
    "\ufffe",
    "{}",
    "{0}{x!r}",
    "%s%n",
)
FORM_MEDIA: Final = (
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "b" * 5000,
    "application/x-www-form-urlencoded",
)


def broken_json(rng: random.Random) -> bytes:
    """Documents that are malformed or hard to parse."""
    return rng.choice(
        (
            b"",
            b"[" * 100_000,
            b'{"texts":' * 20_000 + b"1" + b"}" * 20_000,
            b'{"texts":["a"],"texts":["b"]}',
            b'{"texts":["\xff\xfe"]}',
            b'{"texts":["\\ud800"]}',
            b'{"texts":["a"],"normalize":' + b"9" * 100_000 + b"}",
            b'{"image":"aGk=","resolution":1e400}',
            b'{"image":"aGk=","resolution":NaN}',
            b'{"image":"' + b"=" * 100_000 + b'"}',
            b'{"image":"data:image/png;base64,\xc3\xa9"}',
            b'{"image":"data:;;;,,,"}',
            b'\xef\xbb\xbf{"texts":["a"]}',
            '{"texts":["a"]}'.encode("utf-16"),
            b'{"texts":["a"]} trailing',
            b'{"__proto__":{"texts":["a"]}}',
            rng.randbytes(1000),
        )
    )


def long_json(rng: random.Random) -> bytes:
    """Correct documents that are far too long."""
    return json.dumps(
        rng.choice(
            (
                {"texts": ["a"] * 1025},
                {"texts": ["a"] * 200_000},
                {"texts": ["a"], "templates": ["{}"] * 65},
                {"texts": [f"{n} words" for n in range(1024)], "templates": "tcl"},
                {"images": ["aGk="] * 33},
                {"images": [""] * 100_000},
                {"image": "aGk=", "classes": [str(n) for n in range(513)]},
                {"image": "aGk=", "classes": [{"name": "a", "prompts": ["b"] * 2000}]},
                {f"field {n}": n for n in range(20_000)},
            )
        )
    ).encode()


def odd_words(rng: random.Random) -> bytes:
    """Unusual texts in correct documents."""
    words = [rng.choice(WORDS) for _ in range(3)]
    body = {"texts": words, "templates": rng.choice(("none", ["a {}"], ["{} {}"], [], "other"))}
    return json.dumps(body).encode()


def form(rng: random.Random) -> bytes:
    """Multipart bodies that are cut, nested, endless, or have thousands of parts."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    return rng.choice(
        (
            b"",
            b"--b",
            b"--b--\r\n",
            part % b"images",
            part % b"\xff\xfe",
            (part % b"images") * 2000 + b"--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="' + b"f" * 100_000,
            b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n--b--\r\n',
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
            b"--c\r\n\r\n--c--\r\n--b--\r\n",
            b'--b\r\nContent-Disposition: form-data; name="images"; filename="../../a"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\n!!!\r\n--b--\r\n",
            rng.randbytes(2000),
        )
    )


# Images in the forms of a body.

MEDIA: Final = ("image/jpeg", "image/png", "image/x-anything")
BOUNDARY: Final = "x" * 20


def raw(image: bytes, rng: random.Random) -> Form:
    query = rng.choice(("", "?outputs=cls1", "?fit=aspect", "?resolution=448", "?normalize=false"))
    headers = {"Content-Type": rng.choice(MEDIA), "Accept": NPY}
    return f"/v1/images:embed{query}", image, headers


def mask(image: bytes, rng: random.Random) -> Form:
    style = rng.choice(("", "&format=overlay", "&background_threshold=0.1"))
    headers = {"Content-Type": rng.choice(MEDIA), "Accept": "image/png"}
    return f"/v1/images:segment?classes=dog,sky{style}", image, headers


def multipart(image: bytes, rng: random.Random) -> Form:
    named = 'Content-Disposition: form-data; name="images"; filename="a"'
    part = f"--{BOUNDARY}\r\n{named}\r\n\r\n".encode() + image + b"\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    body = part * rng.choice((1, 1, 2)) + f"--{BOUNDARY}--\r\n".encode()
    return "/v1/images:embed", body, headers


def in_json(image: bytes, rng: random.Random) -> Form:
    texts = [base64.b64encode(image).decode()] * rng.choice((1, 1, 2))
    body = {"images": texts, "outputs": ["cls2", "patches"], "encoding": "base64"}
    return "/v1/images:embed", json.dumps(body).encode(), {"Content-Type": "application/json"}


FORMS: Final[tuple[Callable[[bytes, random.Random], Form], ...]] = (
    raw,
    raw,
    mask,
    multipart,
    in_json,
)
