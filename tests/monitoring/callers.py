"""Callers over every protocol: REST, gRPC, streams, OpenAI's routes and Open Inference."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx
import numpy as np
import tritonclient.grpc

from tests.end_to_end.conftest import Service

LIMIT_S: Final = 60.0
MODEL: Final = "tipserve-student"
PAUSE_S: Final = 0.05
TEXTS: Final = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a dog", "the sky"]}


class Callers:
    """Sends requests to one service over each protocol in turn until stopped."""

    def __init__(self, service: Service, images: Sequence[bytes]) -> None:
        self._service = service
        self._images = list(images)
        self._num_rounds = 0

    def rounds(self) -> Iterator[Callable[[], None]]:
        """Use one protocol after the other, endlessly."""
        while True:
            yield from (self._native, self._refused, self._open_inference, self._openai)
            self._num_rounds += 1

    def _native(self) -> None:
        service, images = self._service, self._images
        segment = {"images": images, "classes": ["dog", "sky", f"thing {self._num_rounds}"]}
        assert service.over_rest("segment_images", segment).status == "200"
        assert service.over_rest("embed_images", {"images": images}).status == "200"
        assert service.over_grpc("embed_images", {"images": images}).status == "OK"
        assert service.over_stream("embed_images", {"images": images}).status == "OK"

    def _refused(self) -> None:
        """Client errors: no image, and an unknown route."""
        assert self._service.over_grpc("embed_images", {"images": [b"?"]}).status != "OK"

        assert self._post("/v1/image:embed", {}) == 404

    def _open_inference(self) -> None:
        assert self._post(f"/v2/models/{MODEL}/infer", {"inputs": [TEXTS]}) == 200
        given = tritonclient.grpc.InferInput("text", [1], "BYTES")
        given.set_data_from_numpy(np.array([b"a dog"], dtype=np.object_))
        address = f"127.0.0.1:{self._service.ports['grpc']}"
        with tritonclient.grpc.InferenceServerClient(address) as client:
            client.infer(MODEL, [given], client_timeout=LIMIT_S)

    def _openai(self) -> None:
        assert self._post("/v1/embeddings", {"model": MODEL, "input": ["a dog"]}) == 200

    def _post(self, route: str, body: Any) -> int:
        url = f"http://127.0.0.1:{self._service.ports['http']}{route}"
        return httpx.post(url, json=body, timeout=LIMIT_S).status_code


@contextmanager
def calling(service: Service, images: Sequence[bytes]) -> Iterator[None]:
    """Run callers in a loop during the block; unexpected results raise."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for one in Callers(service, images).rounds():
                one()
                if stop.wait(PAUSE_S):
                    return
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT_S)
    assert not errors, errors
