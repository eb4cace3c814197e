"""General words and their members."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.general_words import WORDS_FILE, read_words, write_words
from model.package import ModelPackage, PackageError, open_package, write_manifest

DOG, POODLE, HUSKY = np.eye(3, 32, dtype=np.float32)
Write = Callable[[Path], None]


def write_dogs(path: Path) -> None:
    write_words(path, {"dog": ["poodle", "husky"]}, {"poodle": 3 * POODLE, "husky": HUSKY})


@pytest.fixture
def with_words(tiny_package: ModelPackage, tmp_path: Path) -> Callable[[Write], ModelPackage]:
    """The tiny package with a file of general words."""

    def make(write: Write) -> ModelPackage:
        folder = tmp_path / "package"
        shutil.copytree(tiny_package.path, folder)
        write(folder / WORDS_FILE)
        return write_manifest(folder, tiny_package.manifest)

    return make


def test_a_word_has_a_vector_of_its_own_and_one_for_each_member(
    with_words: Callable[[Write], ModelPackage],
) -> None:
    words = read_words(open_package(with_words(write_dogs).path))
    assert words is not None
    assert words.members_of == {"dog": ["poodle", "husky"]}
    for name in ("dog", " Dogs"):
        vectors_VD = words.widen(name, DOG)
        assert vectors_VD is not None
        assert vectors_VD.shape == (3, 32)
        lengths_V = np.linalg.norm(vectors_VD, axis=1)
        np.testing.assert_allclose(lengths_V, [1, 0.8, 0.8], atol=1e-3)
        cosines_VV = vectors_VD @ np.stack([DOG, POODLE, HUSKY]).T
        assert cosines_VV.argmax(axis=1).tolist() == [0, 1, 2]
        assert cosines_VV[:, 1:].min() > 0.2, "each leans to the mean of the members"
    for name in ("cat", "poodle", "do"):
        assert words.widen(name, DOG) is None


def saved(vectors: np.ndarray, **table: object) -> Write:
    content = {"members": ["poodle", "husky"], "words": {"dog": [0, 1]}, **table}
    return lambda path: save_file({"members": vectors}, path, {"table": json.dumps(content)})


VECTORS = np.stack([POODLE, HUSKY]).astype(np.float16)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"words"), "is no table"),
        (saved(VECTORS, words={"dog": []}), "is no table"),
        (saved(VECTORS, words={"dog": [0] * 512}), "is no table"),
        (saved(VECTORS, words={"dog": [-1]}), "is no table"),
        (saved(VECTORS, words={"dog": [2]}), "a member that it does not hold"),
        (saved(VECTORS[:1]), r"float16 \(2, 32\)"),
        (saved(VECTORS[:, :8]), r"float16 \(2, 32\)"),
        (saved(VECTORS.astype(np.float32)), "must hold float16"),
    ],
)
def test_a_malformed_file_is_refused(
    with_words: Callable[[Write], ModelPackage], write: Write, message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        read_words(with_words(write))


def test_only_the_bundled_model_has_general_words(tiny_package: ModelPackage) -> None:
    assert read_words(tiny_package) is None
    assert read_words(open_package("bundled-student")) is None
    words = read_words(open_package("bundled"))
    assert words is not None
    assert {"dog", "flower", "fruit", "vehicle"} <= words.members_of.keys()
