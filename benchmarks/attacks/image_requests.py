"""Broken, odd and huge images over both protocols; what is answered must be whole and finite."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Final

import grpc
import numpy as np

from benchmarks.attacks.attack import Attack, Broken
from benchmarks.attacks.bombs import bombs
from benchmarks.attacks.images import DAMAGES, FORMATS, MODES, NUM_SEEDS, whole
from benchmarks.attacks.oddities import oddities
from benchmarks.attacks.raw_rpc import call, checked_code
from benchmarks.attacks.rest_client import RestClient
from service.grpc.generated import embed_pb2, image_pb2, segment_pb2

REST_STATUSES: Final = frozenset({"200", "413", "422", "429"})
RPC_STATUSES: Final = frozenset({"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
NPY: Final = {"Accept": "application/x-npy"}
BOUNDARY: Final = "x" * 20
MEDIA: Final = ("image/jpeg", "image/png", "image/x-anything")

Draw = Callable[[random.Random], bytes]


def draws() -> Iterator[tuple[str, Draw]]:
    """Each kind of image, and how one is drawn."""

    def damaged(name: str, rng: random.Random) -> bytes:
        file_format = rng.choice(FORMATS)
        image = whole(
            file_format, rng.choice(MODES[file_format]), rng.randrange(NUM_SEEDS), rng.randrange(4)
        )
        return DAMAGES[name](image, rng)

    for name in DAMAGES:
        yield f"image {name}", partial(damaged, name)
    yield "image odd", lambda rng: rng.choice(oddities())[1]
    yield "image bomb", lambda rng: rng.choice(bombs())[1]


def rest_attacks(client: RestClient, limit_s: float) -> list[Attack]:
    """Every kind of image, in every form that a body may have."""

    def send(draw: Draw, rng: random.Random) -> str:
        target, body, headers = rng.choice(FORMS)(draw(rng), rng)
        answer = client.ask("POST", target, body, headers)
        if answer.status == "200" and answer.headers["content-type"] == NPY["Accept"]:
            _check_finite(np.load(BytesIO(answer.body), allow_pickle=False))
        return answer.status

    return [
        Attack(kind=f"rest {k}", send=partial(send, d), allowed=REST_STATUSES, limit_s=limit_s)
        for k, d in draws()
    ]


def rpc_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Every kind of image, to both RPCs that take some."""

    def send(draw: Draw, rng: random.Random) -> str:
        images = [image_pb2.Image(encoded=draw(rng)) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.5:
            outputs = [embed_pb2.IMAGE_OUTPUT_CLS1, embed_pb2.IMAGE_OUTPUT_VALUES]
            request = embed_pb2.EmbedImagesRequest(images=images, outputs=outputs)
            code, raw = call(channel, "EmbedImages", request.SerializeToString(), limit_s)
            for item in embed_pb2.EmbedImagesResponse.FromString(raw).embeddings:
                _check_finite(np.frombuffer(item.values.data, "<f4"))
            return code
        classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]
        masks = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
        return call(channel, "SegmentImages", masks.SerializeToString(), limit_s)[0]

    return [
        Attack(
            kind=f"grpc {k}",
            send=partial(checked_code, partial(send, d)),
            allowed=RPC_STATUSES,
            limit_s=limit_s,
        )
        for k, d in draws()
    ]


Form = tuple[str, bytes, dict[str, str]]


def _raw(image: bytes, rng: random.Random) -> Form:
    query = rng.choice(("", "?outputs=cls1", "?fit=aspect", "?resolution=448", "?normalize=false"))
    return f"/v1/images:embed{query}", image, {"Content-Type": rng.choice(MEDIA), **NPY}


def _mask(image: bytes, rng: random.Random) -> Form:
    style = rng.choice(("", "&format=overlay", "&background_threshold=0.1"))
    headers = {"Content-Type": rng.choice(MEDIA), "Accept": "image/png"}
    return f"/v1/images:segment?classes=dog,sky{style}", image, headers


def _form(image: bytes, rng: random.Random) -> Form:
    parts = b"".join(_part(data) for data in [image] * rng.choice((1, 1, 2)))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return "/v1/images:embed", parts + f"--{BOUNDARY}--\r\n".encode(), headers


def _json(image: bytes, rng: random.Random) -> Form:
    texts = [base64.b64encode(image).decode()] * rng.choice((1, 1, 2))
    body = {"images": texts, "outputs": ["cls2", "patches"], "encoding": "base64"}
    return "/v1/images:embed", json.dumps(body).encode(), {"Content-Type": "application/json"}


FORMS: Final[Sequence[Callable[[bytes, random.Random], Form]]] = (_raw, _raw, _mask, _form, _json)


def _part(data: bytes) -> bytes:
    named = 'Content-Disposition: form-data; name="images"; filename="a"'
    return f"--{BOUNDARY}\r\n{named}\r\n\r\n".encode() + data + b"\r\n"


def _check_finite(values: "np.typing.NDArray[np.generic]") -> None:
    if not np.isfinite(values).all():
        raise Broken("an answer holds what is no number")
