"""Hostile bodies over REST: JSON, forms, and images in every form of a body."""

import base64
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Final

Body = tuple[str, bytes, dict[str, str]]

TARGETS: Final = ("/v1/images:embed", "/v1/texts:embed", "/v1/images:segment")
JSON: Final = {"Content-Type": "application/json"}
NPY: Final = "application/x-npy"
WORDS: Final = (
    "a",
    " ",
    "\0",
    "\U0001f436" * 50,
    "\u202e\u0301" * 100,
    "x" * 2001,
    "\ufffe",
    "{}",
    "%s%n",
)
BOUNDARIES: Final = ("; boundary=b", "", "; boundary=", "; boundary=" + "b" * 5000)


@cache
def broken_json() -> tuple[bytes, ...]:
    """Documents that are malformed or hard to parse."""
    return (
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
        b'\xef\xbb\xbf{"texts":["a"]}',
        '{"texts":["a"]}'.encode("utf-16"),
        b'{"texts":["a"]} trailing',
        b'{"__proto__":{"texts":["a"]}}',
    )


@cache
def long_json() -> tuple[bytes, ...]:
    """Correct documents that are far too long, and unusual texts."""
    documents: tuple[dict[str, object], ...] = (
        {"texts": ["a"] * 200_000},
        {"texts": ["a"], "templates": ["{}"] * 65},
        {"texts": [f"{n} words" for n in range(1024)], "templates": "tcl"},
        {"images": [""] * 100_000},
        {"image": "aGk=", "classes": [str(n) for n in range(513)]},
        {"image": "aGk=", "classes": [{"name": "a", "prompts": ["b"] * 2000}]},
        {f"field {n}": n for n in range(20_000)},
    )
    words = [{"texts": [word], "templates": ["{} {}"]} for word in WORDS]
    return tuple(json.dumps(one).encode() for one in (*documents, *words))


@cache
def forms() -> tuple[bytes, ...]:
    """Multipart bodies that are cut, nested, endless, or have thousands of parts."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    return (
        b"",
        b"--b",
        b"--b--\r\n",
        part % b"images",
        part % b"\xff\xfe",
        (part % b"images") * 2000 + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="images"; filename="' + b"f" * 100_000,
        b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="images"; filename="../../a"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n!!!\r\n--b--\r\n",
    )


def wrong_body(rng: random.Random) -> Body:
    """A body that is wrong inside, to any route."""
    if rng.random() < 0.3:
        media = f"multipart/form-data{rng.choice(BOUNDARIES)}"
        return rng.choice(TARGETS), rng.choice(forms()), {"Content-Type": media}
    body = rng.choice((*broken_json(), *long_json(), rng.randbytes(1000)))
    return rng.choice(TARGETS), body, JSON


def raw(image: bytes, rng: random.Random) -> Body:
    query = rng.choice(("", "?outputs=cls1", "?fit=aspect", "?resolution=448", "?normalize=false"))
    return f"/v1/images:embed{query}", image, {"Content-Type": "image/png", "Accept": NPY}


def mask(image: bytes, rng: random.Random) -> Body:
    style = rng.choice(("", "&format=overlay", "&background_threshold=0.1"))
    headers = {"Content-Type": "image/x-anything", "Accept": "image/png"}
    return f"/v1/images:segment?classes=dog,sky{style}", image, headers


def multipart(image: bytes, rng: random.Random) -> Body:
    named = b'Content-Disposition: form-data; name="images"; filename="a"'
    part = b"--" + b"x" * 20 + b"\r\n" + named + b"\r\n\r\n" + image + b"\r\n"
    body = part * rng.choice((1, 2)) + b"--" + b"x" * 20 + b"--\r\n"
    return TARGETS[0], body, {"Content-Type": f"multipart/form-data; boundary={'x' * 20}"}


def in_json(image: bytes, rng: random.Random) -> Body:
    texts = [base64.b64encode(image).decode()] * rng.choice((1, 2))
    body = {"images": texts, "outputs": ["cls2", "patches"], "encoding": "base64"}
    return TARGETS[0], json.dumps(body).encode(), JSON


FORMS: Final[tuple[Callable[[bytes, random.Random], Body], ...]] = (raw, mask, multipart, in_json)
