"""Every command names what is wrong with its arguments, and writes nothing."""

import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tipserve_cli.commands.test_search import write_embeddings
from tests.tipserve_cli.conftest import Fake
from tipserve_cli import model_options
from tipserve_cli.program import FAILED, WRONG_USAGE, main

MANY = ",".join(map(str, range(256)))
SETS = "--segmentation images masks names.txt"
# With a model in this process, or a server of their own.
HERE = [
    ("models --url=http://x --api-key-file=missing", "missing: No such file"),
    ("models --model=no/such/folder/here", "no/such/folder/here"),
    ("segment missing.jpg --classes=a -o=m.png", "missing.jpg: No such file"),
    ("embed missing -o=x.parquet", "missing does not exist"),
    ("embed oci://bucket/x -o=x.parquet", "pip install -e '.[stores]'"),
]
# A wrong command line, found before anything is loaded.
WRONG_LINE_HERE = [
    ("models --url=ftp://x", "--url: 'ftp://x': write http://host:8000"),
    ("models --url=http://x --runtime=onnx", "--runtime has no effect with --url"),
    (
        "models --runtime=abacus",
        "runtime: Input should be 'auto', 'onnx', 'openvino', 'tensorrt' or 'torch'",
    ),
    ("embed . -o=x.parquet --outputs=cls3", "--outputs 'cls3' is invalid"),
    ("embed . -o=x.csv", "name that ends in .parquet or .npz, or a folder"),
    ("embed . -o=x.npz --outputs=cls1,patches", "--outputs patches: only cls1 and cls2 fit into"),
    ("embed memory://x -o=s3://bucket/x.parquet", "give a folder of the store"),
    ("embed memory://x -o=s3://bucket/x.csv", "only Parquet and NumPy archives are supported"),
    ("bench", "name a running server"),
    ("bench --url=grpc://localhost:8001", "name a running server"),
]
# With a server.
WRONG = [
    ("classify image.png --classes-file=none.txt", "none.txt: No such file"),
    ("classify image.png --classes-file=blank.txt", "blank.txt: line 2 is blank; remove it."),
    ("classify image.png --classes-file=empty.txt", "empty.txt has no lines."),
    ("classify image.png --classes-file=image.png", "image.png is not UTF-8 text."),
    ("classify image.png --classes=a -o=no/x.csv", "no is not a folder"),
    ("features broken.jpg -o=f.npy", "broken.jpg: the image cannot be decoded"),
    ("segment image.png --classes=head:many -o x", "256 classes given, at most 255 fit into"),
    ("depth broken.jpg -o d.png", "broken.jpg: the image cannot be decoded"),
    ("segment image.png --classes=head:many -o m.png", "256 classes given, at most 255 fit into"),
    ("segment image.png --classes=a -o no/such/mask.png", "no/such is not a folder"),
    ("segment image.png --classes=a -o image.png/mask.png", "image.png is not a folder"),
    ("segment broken.jpg --classes=a -o m.png", "broken.jpg: the image cannot be decoded"),
    ("search e.parquet --image=no.png", "no.png: No such file"),
    ("search e.parquet a --column=cls2", "no embeddings 'cls2'; choose a --column from cls1."),
    ("search image.png a", "image.png cannot be read as Parquet."),
    ("search image.npz a", "image.npz cannot be read as an archive of NumPy."),
    ("search other.npz a", "other.npz is no output of `tipserve embed`."),
    ("search none.parquet a", "none.parquet cannot be read as Parquet."),
    ("search other.parquet a", "other.parquet is no output of `tipserve embed`."),
    ("search . a", ". has no parts"),
    ("evaluate --polygons nowhere", "nowhere/annotations.json cannot be read"),
    ("evaluate --knn=nowhere", "nowhere/train is missing"),
    ("evaluate --dataset coco nowhere", "nowhere has no dataset_coco.json. coco needs"),
    ("evaluate --retrieval=nowhere", "nowhere is not a folder."),
    (f"evaluate {SETS} --against=nowhere", "nowhere has no report"),
    (f"evaluate {SETS} --templates=nowhere", "nowhere: No such file"),
    (f"evaluate {SETS} --templates=names.txt", "'cat & mouse' needs {} once"),
    ("evaluate --depth images depths", "fake has no head for depth; use a model that has one"),
]
WRONG_LINE = [
    ("classify image.png", "Give the classes by --classes or by --classes-file."),
    (
        "classify image.png --classes=a --classes-file=names.txt",
        "by --classes or by --classes-file.",
    ),
    ("classify image.png image.png --classes=a", "Several images need an --output that ends in"),
    ("classify image.png --classes=a -o=x.txt", "--output must end in .csv or .jsonl, not x.txt."),
    ("features image.png -o=f.npy --kind=colors", "--kind draws an image"),
    ("features image.png -o=f.txt", "--output must end in .npy or .png, not f.txt."),
    ("segment image.png --classes=a -o mask.jpg", "must end in .png or .npy for --format mask"),
    ("segment image.png --classes=a -o mask.npy --format=overlay", "--output must end in .png"),
    ("segment image.png --classes=a -o m.png --format=coco", "must end in .json for --format coco"),
    ("segment images --classes=a -o mask.png", "Several images need a folder as --output."),
    (f"segment images --classes={MANY} -o seen", "256 classes given, at most 255"),
    ("depth image.png -o d.tif", "--output must end in .png or .npy, not d.tif."),
    ("depth image.png -o d.npy --format=colors", "--format colors needs an --output that ends in"),
    ("depth image.png image.png -o d.png", "Several images need a folder as --output."),
    ("normals image.png -o n.png --format=millimetres", "millimetres is for depth"),
    (f"segment image.png --classes={MANY} -o m.png", "256 classes given, at most 255"),
    ("texts", "Give texts, or --file with a text in each line."),
    ("texts a --file=b", "Give texts, or --file"),
    ("texts a -o=x.csv", "--output must end in .json, .npy or .parquet, not x.csv."),
    ("search e.parquet", "Give words, or --image with an image file."),
    ("search e.parquet a --image=image.png", "Give words, or --image"),
    (
        "evaluate",
        "Give a set: --segmentation, --polygons, --retrieval, --classification, --instances, --knn",
    ),
    ("evaluate --knn=. --reduce-zero-label", "--reduce-zero-label is for --segmentation"),
    (f"evaluate {SETS} -o=x --against=x", "--against is the folder of --output"),
    ("segment image.png -o m.png", "--classes is missing."),
    ("segment image.png --classes -o m.png", "--classes requires an argument"),
    ("segment image.png --classes=, -o m.png", "--classes has no name."),
    (
        "segment image.png --classes=a -o m.png --background-level=3",
        "--background-level. Must be <=",
    ),
    ("segment image.png --classes=a -o m.png --resolution=0", "--resolution. Must be >= 1"),
    ("segment --classes=a -o m.png", "IMAGES is missing."),
    ("classify image.png --classes=,", "Give the classes by --classes or by --classes-file."),
    ("segment image.png --classes=a -o m.bmp --format=overlay", "end in .png, .jpg or .jpeg for"),
]


@pytest.fixture
def folder(image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with good and bad files."""
    folder = image.parent
    monkeypatch.chdir(folder)
    for name, text in (
        ("blank.txt", "a\n\nb\n"),
        ("empty.txt", ""),
        ("broken.jpg", "nonsense"),
        ("names.txt", "cat & mouse\ndog\n"),
    ):
        (folder / name).write_text(text)
    for name in ("images", "masks", "depths"):
        (folder / name).mkdir()
        Image.fromarray(np.ones((40, 60), np.uint8)).save(folder / name / "0.png")
    write_embeddings(Path("e.parquet"), ["a.jpg"])
    pq.write_table(pa.table({"cls1": [[1.0, 0, 0, 0]]}), "other.parquet")
    (folder / "image.npz").write_bytes(image.read_bytes())
    np.savez("other.npz", cls1=np.zeros((1, 4)))
    return folder


@pytest.mark.parametrize(("line", "sentence"), [*HERE, *WRONG_LINE_HERE, *WRONG, *WRONG_LINE])
def test_what_is_wrong_is_named(
    folder: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    sentence: str,
) -> None:
    is_line = (line, sentence) in {*WRONG_LINE_HERE, *WRONG_LINE}
    if (line, sentence) not in {*HERE, *WRONG_LINE_HERE}:
        fake: Fake = request.getfixturevalue("fake")
        fake.head = list(map(str, range(256)))
    before = {path.name for path in folder.iterdir()}
    command, *arguments = shlex.split(line)
    if (line, sentence) in WRONG_LINE:
        monkeypatch.setattr(model_options, "connect", None)
    assert main([command, *arguments]) == (WRONG_USAGE if is_line else FAILED)
    error = capsys.readouterr().err
    assert error.startswith(f"tipserve {command}: ")
    assert sentence in error
    assert {path.name for path in folder.iterdir()} <= before | {"evaluation", "x"}
