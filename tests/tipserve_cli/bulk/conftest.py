"""An engine without a model, photos on disk, an object store, and a job over them."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from model.image_codec import ImageLimits, decode_image
from service.messages import EmbedImagesRequest
from tipserve_cli.bulk.inputs import Columns, find_inputs
from tipserve_cli.bulk.output import Job, JobOptions
from tipserve_cli.engines.engine import Embedding, ImageRefused, ModelSummary

LIMITS = ImageLimits(max_bytes=10**6, max_pixels=10**6)
DIM = 4


@dataclass
class FakeEngine:
    """Returns the mean colour of an image, and refuses invalid ones. Fails at `break_at`."""

    window: int = 3
    num_asked: int = 0
    max_under_way: int = 0
    break_at: int | None = None
    refused: list[str] = field(default_factory=list)

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        future: Future[Embedding] = Future()
        self.num_asked += 1
        if self.break_at is not None and self.num_asked >= self.break_at:
            future.set_exception(RuntimeError("broken"))
            return future
        try:
            image = request.images[0]
            assert isinstance(image, bytes)
            pixels_HW3 = decode_image(image, LIMITS)
        except Exception:
            future.set_exception(ImageRefused("no image", "invalid_image"))
            return future
        vector = np.append(pixels_HW3.mean(axis=(0, 1)), 1).astype(np.float32)
        grid = np.tile(vector, (2, 3, 1))
        known = {"cls1": vector, "cls2": -vector, "patches": grid, "values": grid}
        future.set_result({name: known[name] for name in request.outputs})
        return future

    def segment(self, request: object) -> None:
        raise NotImplementedError

    def models(self) -> list[ModelSummary]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """A flat image of one colour."""

    def make(grey: int, size: tuple[int, int] = (20, 10)) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, (grey, 10, 20)).save(stream, "JPEG")
        return stream.getvalue()

    return make


@pytest.fixture
def photos(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """Ten images, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(10):
        data = b"nonsense" if index == 4 else jpeg(20 * index)
        (folder / f"{index}.jpg").write_bytes(data)
    return folder


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty folder in an object store."""
    url = "memory://bucket/job" if request.param == "memory" else (tmp_path / "job").as_uri()
    yield url
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """A job with these inputs."""

    def make(
        *named: Path | str, part_items: int = 3, fingerprint: str = "f", **request: object
    ) -> Job:
        fields = {"images": (), "outputs": ("cls1",), **request}
        options = JobOptions(
            request=EmbedImagesRequest(**fields),  # type: ignore[arg-type]
            dtype="float32",
            columns=Columns(),
            part_items=part_items,
        )
        return Job(
            inputs=find_inputs([str(path) for path in named], [], part_items),
            options=options,
            model=ModelSummary(
                name="fake",
                variant="fake",
                embed_dim=DIM,
                patch_size=14,
                native_size=28,
                outputs=("patches", "values", "cls1", "cls2", "text"),
                runtime="fake",
                precision="fp32",
                device="cpu",
                fingerprint=fingerprint,
            ),
        )

    return make
