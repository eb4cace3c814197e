"""Masks as files, by a fake engine or by the bundled model in this process."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.winner_map import Labels
from service.commands.program import FAILED, main
from service.engines.engine import ImageRefused
from service.messages import SegmentImagesRequest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, 30:] = (250, 40, 30)
    Image.fromarray(half).save(file)
    return file


@pytest.mark.slow
def test_every_kind_of_file_shows_the_same_mask(image: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("mask.png", "mask.npy", "seen.png")]
    for file in files:
        options = ["--overlay"] if file.stem == "seen" else []
        arguments = ["segment", str(image), "--classes= apple ,night", "-o", str(file)]
        assert main([*arguments, *options]) == 0
    labels_HW = np.load(files[1], allow_pickle=False)
    assert labels_HW.shape == (40, 60)
    assert set(np.unique(labels_HW)) <= {1, 2}
    with Image.open(files[0]) as mask, Image.open(files[2]) as seen:
        np.testing.assert_array_equal(np.asarray(mask), labels_HW)
        assert seen.size == (60, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [image.name, *(file.name for file in files)]
    )


class FakeEngine:
    """Finds the first class everywhere, and refuses an image that is not a PNG file."""

    def segment(self, request: SegmentImagesRequest) -> Labels:
        (image,) = request.images
        assert isinstance(image, bytes)
        if not image.startswith(b"\x89PNG"):
            raise ImageRefused("the image cannot be decoded", "invalid_image")
        return np.ones((40, 60), np.uint8)


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = nullcontext(FakeEngine())
    monkeypatch.setattr("service.commands.segment.opened_engine", lambda options: engine)


@pytest.mark.usefixtures("fake_engine")
def test_an_image_is_read_from_standard_input(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(image.read_bytes()))
    monkeypatch.setattr("sys.stdin", stream)
    file = tmp_path / "mask.npy"
    assert main(["segment", "-", "--classes=apple", "-o", str(file)]) == 0
    assert np.load(file, allow_pickle=False).tolist() == np.ones((40, 60)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--classes=a", "-o", "mask.jpg"], "--output must end in .png or .npy, not mask.jpg."),
        (["--classes=a", "-o", "mask.npy", "--overlay"], "--output must end in .png"),
        (
            [f"--classes={','.join(map(str, range(256)))}", "-o", "m.png"],
            "256 classes given, at most 255",
        ),
        (["--classes=a,a", "-o", "mask.png"], "is given twice"),
        (["--classes=,", "-o", "mask.png"], "classes is empty"),
        (["--classes=a", "-o", "mask.png", "--resolution=13"], "resolution must be a multiple"),
        (["--classes=a", "-o", "no/such/mask.png"], "no/such is not a folder"),
        (["--classes=a", "-o", "image.png/mask.png"], "image.png is not a folder"),
    ],
)
def test_invalid_arguments_are_named_and_nothing_is_written(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["segment", str(image), *options]) == FAILED
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.usefixtures("fake_engine")
def test_a_broken_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"nonsense")
    assert main(["segment", str(file), "--classes=a", "-o", str(tmp_path / "m.png")]) == FAILED
    assert f"{file}: the image cannot be decoded" in capsys.readouterr().err
