"""Equal answers over both protocols, for a batch and its items, and of every package so far.

All of it holds bare; a proxy in front changes no answer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.processes.server import LIMIT_S, Server, photo, serve, start_server
from tests.promises.golden_requests import picture
from tipserve_client import Client, Example, TipserveError

Ask = Callable[[Any], Any]
IMAGES = [photo(1, (90, 60)), photo(2, (60, 90)), photo(3, (112, 112))]
SOME_BROKEN = [b"hello", IMAGES[0], picture("broken"), IMAGES[1]]
CLASSES = {"dog": ["a dog"], "cat": ["a cat", "the small cat"], "grass": ["grass"]}
EVERYTHING = ["patches", "values", "cls1", "cls2"]
PARTS = {
    "spot": [Example(point=(20, 50.5))],
    "part": [
        Example(image=1, box=(5, 4, 30, 40)),
        Example(mask={"size": [60, 90], "counts": "l1lV5"}),  # all but the first column
    ],
}
CALLS: Mapping[str, Ask] = {
    "images": lambda c: c.embed_images(IMAGES, outputs=EVERYTHING),
    "raw": lambda c: c.embed_images(IMAGES, outputs="values", normalize=False, resolution=56),
    "aspect, float16": lambda c: c.embed_images(IMAGES, fit="aspect", dtype="float16"),
    "int8": lambda c: c.embed_images(IMAGES, outputs=EVERYTHING, dtype="int8"),
    "some images": lambda c: c.embed_images(SOME_BROKEN, partial=True),
    "texts": lambda c: c.embed_texts(["a dog", "Sky", "dog and cat " * 90], templates="tcl"),
    "own templates, int8": lambda c: c.embed_texts(["a", "b"], templates=["{}!"], dtype="int8"),
    "some texts": lambda c: c.embed_texts(["", "dog", "a" * 3000], partial=True),
    "masks": lambda c: c.segment(IMAGES, CLASSES, include_scores=True, background_threshold=0.1),
    "background": lambda c: c.segment(IMAGES, CLASSES, background_classes=["sea"], size="model"),
    "one class": lambda c: c.segment(IMAGES, ["dog"], background_level=0.6, quality="published"),
    "background auto": lambda c: c.segment(IMAGES, CLASSES, background="auto", pool="max"),
    "fast": lambda c: c.segment(IMAGES, CLASSES, quality="fast", background="auto"),
    "fine": lambda c: c.segment(IMAGES, CLASSES, quality="fine", include_scores="all"),
    "instances": lambda c: c.segment(IMAGES, CLASSES, include_instances=True, mode="slide"),
    "cosines": lambda c: c.segment(IMAGES, CLASSES, include_scores="all", size="model"),
    "examples": lambda c: c.segment(IMAGES, PARTS, size="patch"),
    "own head": lambda c: c.segment(IMAGES, ["head:meal"]),
    "some masks": lambda c: c.segment(SOME_BROKEN, CLASSES, partial=True),
    "classes": lambda c: c.classify(IMAGES, CLASSES, features="cls2", temperature=0.5, top_k=2),
    "colours": lambda c: c.features(IMAGES, features="values"),
    "groups": lambda c: c.features(IMAGES, kind="groups", group_count=3, seed=5, scope="request"),
}  # fmt: skip
MISTAKES: Mapping[str, Ask] = {
    "damaged": lambda c: c.embed_images(SOME_BROKEN),
    "model": lambda c: c.embed_images(IMAGES, model="other"),
    "resolution": lambda c: c.embed_images(IMAGES, resolution=57),
    "blank text": lambda c: c.embed_texts(["dog", " \n"]),
    "class twice": lambda c: c.segment(IMAGES, ["dog", "dog"]),
    "threshold": lambda c: c.segment(IMAGES, ["dog"], background_threshold=1.5),
    "quality": lambda c: c.segment(IMAGES, ["dog"], quality="fine", mode="slide"),
    "fine windows": lambda c: c.segment(IMAGES, CLASSES, quality="fine", mode="slide"),
    "level": lambda c: c.segment(IMAGES, CLASSES, background_level=0.5),
    "outside": lambda c: c.segment(IMAGES, {"a": [Example(point=(900, 5))]}),
    "no such head": lambda c: c.segment(IMAGES, ["head:other"]),
    "top_k": lambda c: c.classify(IMAGES, CLASSES, top_k=0),
    "no dense heads": lambda c: c.depth(IMAGES),
}


def test_both_protocols_give_equal_answers(rest: Client, rpc: Client) -> None:
    for name, ask in CALLS.items():
        known, found = dict(flat(ask(rest))), dict(flat(ask(rpc)))
        assert found.keys() == known.keys(), name
        for path, value in known.items():
            assert_near(found[path], value, f"{name}{path}")


def test_both_protocols_give_equal_dense_maps(default: Server) -> None:
    with Client(default.rest) as rest, Client(f"grpc://{default.grpc}") as rpc:
        for name in ("depth", "normals"):
            both = zip(*(getattr(client, name)(IMAGES) for client in (rest, rpc)), strict=True)
            for one, other in both:
                # int8 quantises the image's activations together with its neighbours' in a batch.
                np.testing.assert_allclose(one, other, atol=1e-3, err_msg=name)


def test_both_protocols_give_equal_errors(rest: Client, rpc: Client) -> None:
    for name, ask in MISTAKES.items():
        errors = []
        for client in (rest, rpc):
            with pytest.raises(TipserveError) as caught:
                ask(client)
            errors.append(caught.value)
        said = [(type(e), e.code, e.param, e.message) for e in errors]
        assert said[0] == said[1], name
        assert all(error.request_id for error in errors), name


@pytest.mark.parametrize("protocol", ["rest", "rpc"])
def test_a_batch_equals_its_items(protocol: str, request: pytest.FixtureRequest) -> None:
    client: Any = request.getfixturevalue(protocol)
    images = [photo(seed, (60 + 7 * seed, 70)) for seed in range(9)]
    asks: list[Ask] = [
        lambda given: client.embed_images(given, outputs=EVERYTHING),
        lambda given: client.segment(given, CLASSES),
        lambda given: client.classify(given, CLASSES),
    ]
    for ask in asks:
        for one, image in zip(ask(images), images, strict=True):
            alone = dict(flat(ask([image])[0]))
            for path, value in flat(one):
                assert_near(value, alone[path], path)


def test_packages_are_served_side_by_side_under_their_names() -> None:
    flags = ("--model=small=bundled-student,bundled", "--precision=fp32", "--runtime=onnx")
    with start_server(*flags) as server, Client(server.rest) as client:
        models = client.models()
        assert [(m.name, m.embed_dim) for m in models] == [
            ("small", 192),
            ("tipserve-photographs", 768),
        ]
        for model in models:
            assert client.embed_texts(["dog"], model=model.name).shape == (1, model.embed_dim)
        assert client.embed_texts(["dog"]).shape == (1, models[0].embed_dim)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--colour=red",), "colour"),
        (("--model=bundled-student", "--max-image-bytes=-1"), "max_image_bytes"),
        (("--model=no-such-model",), "no-such-model"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_is_named(flags: tuple[str, ...], named: str) -> None:
    done = serve(*flags)
    assert done.returncode != 0
    assert named in (done.stdout + done.stderr).replace("-", "_") or named in done.stderr


def test_a_request_id_comes_back(student: Server) -> None:
    headers = {"X-Request-Id": "an-id-of-mine"}
    answer = httpx.get(f"{student.rest}/v1/models", headers=headers, timeout=LIMIT_S)
    assert answer.headers["x-request-id"] == "an-id-of-mine"


@pytest.fixture
def clients(student: Server) -> Iterator[tuple[Client, Client]]:
    with ExitStack() as stack:
        urls = (student.rest, f"grpc://{student.grpc}")
        rest, rpc = (stack.enter_context(Client(url)) for url in urls)
        yield rest, rpc


@pytest.fixture
def rest(clients: tuple[Client, Client]) -> Client:
    return clients[0]


@pytest.fixture
def rpc(clients: tuple[Client, Client]) -> Client:
    return clients[1]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays and plain values of a result, by path."""
    if isinstance(value, TipserveError):
        yield path, (type(value), value.code, value.param, value.message)
    elif is_dataclass(value):
        for one in fields(value):
            yield from flat(getattr(value, one.name), f"{path}.{one.name}")
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from flat(one, f"{path}[{index}]")
    elif value is not None:
        yield path, value


def assert_near(found: Any, wanted: Any, path: str) -> None:
    """Compare exactly, but for the last bits, which depend on the other images of a batch."""
    if not isinstance(wanted, np.ndarray):
        near = isinstance(wanted, float) and found == pytest.approx(wanted, abs=1e-3)
        assert near or found == wanted, path
        return
    array: NDArray[Any] = wanted
    assert (found.dtype, found.shape) == (array.dtype, array.shape), path
    if array.dtype == np.uint16:
        assert (found != array).mean() < 1e-3, path
    else:
        atol = 1.0 if array.dtype == np.int8 else 1e-3
        np.testing.assert_allclose(
            found.astype(np.float64), array.astype(np.float64), rtol=0, atol=atol, err_msg=path
        )
