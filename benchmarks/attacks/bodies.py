"""Bodies of the right media type that are wrong inside: JSON and forms, deep, long, broken, odd."""

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.attacks.attack import Attack
from benchmarks.attacks.rest_client import RestClient

ALLOWED: Final = frozenset({"200", "404", "406", "413", "415", "422", "429"})
TARGETS: Final = ("/v1/images:embed", "/v1/texts:embed", "/v1/images:segment")
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

Make = Callable[[random.Random], bytes]


def broken_json(rng: random.Random) -> bytes:
    """Documents that are none, or that a parser may choke on."""
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
    """Right in form and far too much of it."""
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
    """Texts of any Unicode, well formed."""
    words = [rng.choice(WORDS) for _ in range(3)]
    body = {"texts": words, "templates": rng.choice(("none", ["a {}"], ["{} {}"], [], "other"))}
    return json.dumps(body).encode()


def form(rng: random.Random) -> bytes:
    """Multipart bodies cut short, nested, without end, of a thousand parts."""
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


def attacks(client: RestClient, limit_s: float) -> list[Attack]:
    """All of this file, to any of the three routes."""
    media_of: dict[str, tuple[Make, tuple[str, ...]]] = {
        "broken JSON": (broken_json, ("application/json", "APPLICATION/JSON; charset=x")),
        "long JSON": (long_json, ("application/json",)),
        "odd words": (odd_words, ("application/json",)),
        "forms": (
            form,
            (
                "multipart/form-data; boundary=b",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "multipart/form-data; boundary=" + "b" * 5000,
                "application/x-www-form-urlencoded",
            ),
        ),
    }

    def send(make: Make, media: tuple[str, ...], rng: random.Random) -> str:
        headers = {"Content-Type": rng.choice(media)}
        return client.ask("POST", rng.choice(TARGETS), make(rng), headers).status

    return [
        Attack(
            kind=f"rest {kind}", send=partial(send, make, media), allowed=ALLOWED, limit_s=limit_s
        )
        for kind, (make, media) in media_of.items()
    ]
