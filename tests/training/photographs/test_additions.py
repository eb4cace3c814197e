"""A package gets the general words, in its own embeddings, and the network for people."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.general_words import WORDS_FILE, read_words
from model.graphs import FOREGROUND_FILE
from model.package import BUNDLED_FOLDER, open_package, write_manifest
from training.photographs.additions import add


@pytest.mark.slow
def test_a_package_has_the_words_and_the_network_of_the_bundled_one(tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED_FOLDER, tmp_path / "package")
    for name in (WORDS_FILE, FOREGROUND_FILE):
        (folder / name).unlink()
    write_manifest(folder, open_package("bundled").manifest)
    add(str(folder))
    found, known = (read_words(open_package(source)) for source in (folder, "bundled"))
    assert found is not None
    assert known is not None
    assert found.members_of == known.members_of
    for word, vectors_VD in known.vectors.items():
        np.testing.assert_allclose(found.vectors[word], vectors_VD, atol=1e-3)
    network, copy = (place / FOREGROUND_FILE for place in (BUNDLED_FOLDER, folder))
    assert copy.read_bytes() == network.read_bytes()
    assert {WORDS_FILE, FOREGROUND_FILE} <= open_package(folder).manifest.files.keys()
