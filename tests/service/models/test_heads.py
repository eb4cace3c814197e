"""Heads that requests name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.head import Head, HeadInfo, write_head
from model.manifest import FileEntry, Manifest
from service.errors import InvalidRequest
from service.messages import ClassifyImagesRequest, SegmentClass, SegmentImagesRequest
from service.models.heads import HeadFolder

DIGEST = "a" * 64
PETS = SegmentClass(name="head:pets")
REQUEST = SegmentImagesRequest(images=(), classes=(PETS,))


@pytest.fixture
def package(manifest: Manifest) -> Manifest:
    """The manifest of a package with a vision graph."""
    entry = FileEntry(sha256=DIGEST, size_bytes=1)
    return manifest.model_copy(update={"files": {"onnx/vision_model.onnx": entry}})


def write(folder: Path, **changed: Any) -> Path:
    """A head of cats and dogs."""
    info: dict[str, Any] = {
        "names": ("cat", "dog"),
        "has_background": True,
        "features": "patches",
        "temperature": 0.1,
        "model": "fake",
        "vision_sha256": DIGEST,
    }
    head = HeadInfo.model_validate({**info, **changed})
    vectors = np.eye(len(head.names) + head.has_background, 8, dtype=np.float32)
    path = folder / "pets.safetensors"
    write_head(path, Head(head, vectors))
    return path


def test_its_name_stands_for_its_classes_which_are_read_again_after_a_change(
    tmp_path: Path, package: Manifest
) -> None:
    folder = HeadFolder(tmp_path)
    write(tmp_path)
    first, head = folder.apply(REQUEST, package)
    write(tmp_path, names=("a cat", "a dog", "a cow"), has_background=False)
    second, _ = folder.apply(REQUEST, package)
    assert [one.name for one in first.classes] == ["cat", "dog"]
    assert (len(first.background_classes), first.features) == (1, "patches")
    assert len(head.classes_KD) == 3
    assert [one.name for one in second.classes] == ["a cat", "a dog", "a cow"]
    assert second.background_classes == ()


@pytest.mark.parametrize("name", ["cats", "../pets", "", "a/../pets", ".pets", "pets.safetensors"])
def test_an_unknown_name_is_refused_with_the_known_ones(
    tmp_path: Path, package: Manifest, name: str
) -> None:
    (tmp_path / "heads").mkdir()
    write(tmp_path / "heads")
    write(tmp_path)
    request = replace(REQUEST, classes=(SegmentClass(name=f"head:{name}"),))
    with pytest.raises(InvalidRequest, match=r"there is no head .*; known: pets"):
        HeadFolder(tmp_path / "heads").apply(request, package)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(REQUEST, classes=(PETS, SegmentClass(name="cow"))), "must be the only class"),
        (replace(REQUEST, classes=(replace(PETS, prompts=("a cat",)),)), "neither prompts"),
        (replace(REQUEST, features="values"), "features: head:pets was trained on patches"),
        (replace(REQUEST, templates="tcl"), "templates: head:pets has no prompts"),
        (replace(REQUEST, background_classes=(SegmentClass(name="sky"),)), "takes no others"),
        (ClassifyImagesRequest(images=(), classes=(PETS,)), "was trained to segment"),
    ],
)
def test_requests_that_a_head_does_not_take_are_refused(
    tmp_path: Path, package: Manifest, request_: Any, message: str
) -> None:
    write(tmp_path)
    with pytest.raises(InvalidRequest, match=message):
        HeadFolder(tmp_path).apply(request_, package)


def test_a_head_that_cannot_be_used_is_an_error_of_the_request(
    tmp_path: Path, package: Manifest
) -> None:
    with pytest.raises(InvalidRequest, match="setting heads"):
        HeadFolder().apply(REQUEST, package)
    write(tmp_path, vision_sha256="b" * 64)
    with pytest.raises(InvalidRequest, match="another vision graph"):
        HeadFolder(tmp_path).apply(REQUEST, package)
    write(tmp_path).write_bytes(b"broken")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        HeadFolder(tmp_path).apply(REQUEST, package)
