"""Patch embeddings as an array, or as an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tipserve_cli.conftest import Fake
from tipserve_cli.program import DONE, FAILED, main


def test_the_output_is_an_array_or_an_image(image: Path, tmp_path: Path, fake: Fake) -> None:
    array, drawing = tmp_path / "f.npy", tmp_path / "f.png"
    assert main(["features", str(image), "-o", str(array), "--features=values"]) == DONE
    assert np.load(array, allow_pickle=False).shape == (2, 3, 4)
    for kind in ([], ["--kind=groups", "--resolution=56", "--fit=squash"]):
        assert main(["features", str(image), "-o", str(drawing), *kind]) == DONE
        with Image.open(drawing) as read:
            assert (read.size, read.mode) == ((60, 40), "P" if kind else "RGB")
    embedded, colours, groups = fake.requests
    assert embedded.fields == {"outputs": ["values"], "fit": "aspect"}
    assert colours.fields == {"kind": "colors", "features": "patches", "fit": "aspect"}
    assert groups.fields == {
        "kind": "groups", "features": "patches", "fit": "squash", "resolution": 56
    }  # fmt: skip


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["image.png", "-o=f.npy", "--kind=colors"], "--kind draws an image"),
        (["image.png", "-o=f.txt"], "--output must end in .npy or .png, not f.txt."),
        (["broken.jpg", "-o=f.npy"], "broken.jpg: the image cannot be decoded"),
    ],
)
def test_invalid_arguments_are_named_and_nothing_is_written(
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(image.parent)
    Path("broken.jpg").write_bytes(b"nonsense")
    assert main(["features", *arguments]) == FAILED
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in image.parent.iterdir()) == ["broken.jpg", "image.png"]
