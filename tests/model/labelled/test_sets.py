"""Sets in folders and shards, and errors that name what is missing."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.labelled import sets
from model.labelled.sets import SetError
from service.outputs.maps import encode_normals_png

Write = Callable[..., Path]


def test_masks_are_found_by_name_in_any_depth(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "images" / "a.jpg", 1)
    write(tmp_path / "images" / "deep" / "b.JPG", 2)
    write(tmp_path / "images" / ".hidden.jpg", 3)
    write(tmp_path / "masks" / "a.png", [[0, 1]])
    names = write(tmp_path / "names.txt", "# by hand\ncat\n\nsea gull\n")
    places = (tmp_path / "images", tmp_path / "masks", names)
    with pytest.raises(SetError, match=r"1 of 2 masks are missing, such as .*masks/deep/b\.png"):
        sets.read_segmentation(*places)
    write(tmp_path / "masks" / "deep" / "b.png", [[0, 2]])
    given = sets.read_segmentation(*places)
    assert (given.name, given.names) == ("images", ["cat", "sea gull"])
    assert [image.read() for image in given.images] == [b"\1", b"\2"]
    assert given.read(0).tolist() == [[0, 1]]
    with pytest.raises(SetError, match=r"has the label 2, and there are 2 names. Add its name, or"):
        given.read(1)
    reduced = sets.read_segmentation(*places, reduce_zero_label=True)
    assert reduced.read(1).tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("mode", "wanted"), [("P", 3), ("L", 3), ("I;16", 3), ("1", 0), ("RGB", None)]
)
def test_masks_are_labels_and_no_colours(
    tmp_path: Path, write: Write, mode: str, wanted: int | None
) -> None:
    write(tmp_path / "images" / "a.jpg", 1)
    (tmp_path / "masks").mkdir()
    pixels = np.full((2, 2), 3, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "masks" / "a.png")
    names = write(tmp_path / "names.txt", "a\nb\nc\nd\n")
    given = sets.read_segmentation(tmp_path / "images", tmp_path / "masks", names)
    if wanted is None:
        with pytest.raises(SetError, match="a label in each pixel, this one is RGB"):
            given.read(0)
    else:
        assert np.unique(given.read(0)).tolist() == [wanted]
    (tmp_path / "masks" / "a.png").write_bytes(b"nonsense")
    with pytest.raises(SetError, match=r"a\.png is no image that can be read"):
        given.read(0)


def test_captions_are_lines_or_json(tmp_path: Path, write: Write) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.jpg", 1)
    write(tmp_path / "a.txt", "one\n\n two \none\n")
    write(tmp_path / "b.json", '{"captions": ["three"]}')
    with pytest.raises(SetError, match=r"1 of 3 images have no caption, such as .*c\.jpg: write"):
        sets.read_captioned(tmp_path)
    write(tmp_path / "c.json", '{"captions": {"alt": "four", "long": null}}')
    assert sets.read_captioned(tmp_path).captions == [["one", "two"], ["three"], ["four"]]
    write(tmp_path / "c.json", "{")
    reason = "the .json file is no JSON"
    with pytest.raises(
        SetError, match=rf"no caption, such as .*c\.jpg: .* left out: {reason} \(1\)"
    ):
        sets.read_captioned(tmp_path)
    write(tmp_path / "c.txt", "four")
    given = sets.read_captioned(tmp_path)
    assert (given.captions[2], given.left_out) == (["four"], {reason: 1})


def test_shards_have_images_and_captions(tmp_path: Path) -> None:
    files = {"x/1.jpg": b"I", "x/1.txt": b"a", "x/2.json": b'{"caption": "b"}', "x/2.png": b"J"}
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    given = sets.read_captioned(tmp_path)
    assert given.captions == [["a"], ["b"]]
    assert [image.read() for image in given.images] == [b"I", b"J"]
    assert str(given.images[0]).endswith("0.tar:x/1.jpg")
    assert sets.read_captioned(tmp_path / "0.tar").captions == given.captions
    (tmp_path / "1.tar").write_bytes(b"nonsense")
    with pytest.raises(SetError, match=r"1\.tar cannot be read as an uncompressed tar"):
        sets.read_captioned(tmp_path)


def test_incomplete_folders_are_named(tmp_path: Path, write: Write) -> None:
    with pytest.raises(SetError, match="needs a folder of images for each of at least two"):
        sets.read_classes(tmp_path)
    write(tmp_path / "train" / "a" / "1.jpg", 1)
    with pytest.raises(SetError, match="val is missing: the folder needs train/ and val/"):
        sets.read_split(tmp_path)
    for place in ("train/b", "val/b", "val/c"):
        write(tmp_path / place / "1.jpg", 1)
    with pytest.raises(SetError, match="the class 'a' is not in both"):
        sets.read_split(tmp_path)
    (tmp_path / "val" / "empty").mkdir()
    with pytest.raises(SetError, match="empty has no images"):
        sets.read_classes(tmp_path / "val")
    with pytest.raises(SetError, match="nowhere is not a folder"):
        sets.images_below(tmp_path / "nowhere")
    for text, problem in (("", "has no names"), ("a\nb\na\n", "has the name 'a' twice")):
        with pytest.raises(SetError, match=problem):
            sets.read_names(write(tmp_path / "names.txt", text))


def test_depth_is_in_millimetres_or_in_metres(tmp_path: Path, write: Write) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.jpg", 1)
    depths = tmp_path / "depths"
    depths.mkdir()
    Image.fromarray(np.array([[0, 1500, 65535]], np.uint16)).save(depths / "a.png")
    with pytest.raises(SetError, match=r"1 of 2 depth maps .* needs a \.npy or \.png file"):
        sets.read_depth(tmp_path / "images", depths)
    np.save(depths / "b.npy", np.array([[0, 1.5, np.nan]], np.float32))
    given = sets.read_depth(tmp_path / "images", depths)
    assert np.array_equal(given.read(0), [[np.nan, 1.5, 65.535]], equal_nan=True)
    assert np.array_equal(given.read(1), [[np.nan, 1.5, np.nan]], equal_nan=True)
    Image.fromarray(np.zeros((1, 3), np.uint8)).save(depths / "a.png")
    with pytest.raises(SetError, match=r"with millimetres in 16 bits, this one is L\."):
        given.read(0)
    for wrong in (np.zeros((1, 3), np.uint16), np.zeros((1, 3, 1), np.float32)):
        np.save(depths / "b.npy", wrong)
        with pytest.raises(SetError, match=r"number in each pixel, float32 \[H, W\]"):
            given.read(1)
    (depths / "b.npy").write_bytes(b"")
    with pytest.raises(SetError, match=r"is no \.npy file that can be read"):
        given.read(1)


def test_normals_are_vectors_or_colours_as_the_server_writes_them(
    tmp_path: Path, write: Write
) -> None:
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.jpg", 1)
    folder = tmp_path / "normals"
    folder.mkdir()
    normals = np.array([[(0, 0.6, -0.8), (1, 0, 0)]], np.float32)
    (folder / "a.png").write_bytes(encode_normals_png(normals))
    np.save(folder / "b.npy", np.concatenate([normals, np.zeros_like(normals)]))
    given = sets.read_normals(tmp_path / "images", folder)
    assert np.allclose(given.read(0), normals, atol=0.01)
    assert np.allclose(given.read(1)[:1], normals)
    assert np.isnan(given.read(1)[1:]).all()
    nothing = [[(0, 0, 0), (127, 127, 127), (128, 128, 128), (255, 255, 255)]]
    Image.fromarray(np.array(nothing, np.uint8)).save(folder / "a.png")
    assert np.isnan(given.read(0)).all()
    Image.fromarray(np.zeros((1, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(SetError, match=r"a PNG of normals is RGB, this one is L\."):
        given.read(0)
