"""Files of heads."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.head import Head, HeadError, HeadInfo, read_head, vision_digest, write_head
from model.package import ModelPackage

INFO = HeadInfo(
    names=("cat", "dog"),
    has_background=True,
    features="values",
    temperature=0.1,
    model="tiny",
    vision_sha256="0" * 64,
)
VECTORS = np.eye(3, 8, dtype=np.float32)
TWICE = INFO.model_copy(update={"names": ("cat", "cat")}).model_dump_json()


def test_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_head(tmp_path / "pets.safetensors", Head(INFO, VECTORS))

    head = read_head(tmp_path / "pets.safetensors")

    assert head.info == INFO
    assert np.array_equal(head.classes_KD, VECTORS)
    assert [path.name for path in tmp_path.iterdir()] == ["pets.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"classes": VECTORS}, None, "is no head"),
        ({"other": VECTORS}, {"head": INFO.model_dump_json()}, "is no head"),
        ({"classes": VECTORS}, {"head": '{"names": []}'}, "is no head"),
        ({"classes": VECTORS}, {"head": TWICE}, "a name is given twice"),
        ({"classes": VECTORS[:2]}, {"head": INFO.model_dump_json()}, "3 vectors of float32"),
        ({"classes": 2 * VECTORS}, {"head": INFO.model_dump_json()}, "unit length"),
        ({"classes": VECTORS * np.nan}, {"head": INFO.model_dump_json()}, "unit length"),
    ],
)
def test_another_file_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None, message: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(HeadError, match=message):
        read_head(path)
    path.write_bytes(b"not a head")
    with pytest.raises(HeadError, match="is no head"):
        read_head(path)


def test_only_the_package_that_it_was_trained_on_may_have_it(tiny_package: ModelPackage) -> None:
    digest = vision_digest(tiny_package.manifest)
    own = Head(INFO.model_copy(update={"vision_sha256": digest}), VECTORS)
    own.check(tiny_package.manifest)

    with pytest.raises(HeadError, match="another vision graph"):
        Head(INFO, VECTORS).check(tiny_package.manifest)
