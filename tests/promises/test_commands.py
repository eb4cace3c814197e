"""The command `tipserve`, and a head of one's own from its training to its masks."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from tests.processes.server import (
    LIMIT_S,
    ROOT,
    TIPSERVE,
    Server,
    photo,
    run,
    start_server,
    tipserve,
)
from tipserve_client import Client

LOCAL = ("--model=bundled-student", "--precision=fp32")
SCENE = ROOT / "examples" / "scene.png"
MEAL = "burger,sunflower,book"
# Commands and their options; more may come.
HELP = {
    "": "--help --version bench classify convert depth embed evaluate features models normals "
    "search segment serve show texts",
    "classify": "--api-key-file --classes --model --output --precision --runtime --top --url",
    "depth": "--fit --format --model --output --overwrite --resolution --url",
    "embed": "--allow-bad-items --api-key-file --dtype --fit --image-column --key-column --model "
    "--no-normalize --output --outputs --overwrite --part-items --precision --ray --resolution "
    "--runtime --url",
    "evaluate": "--background-threshold --classification --dataset --features --instances --knn "
    "--linear --mode --model --output --retrieval --segmentation --templates --url",
    "search": "--image --json --model --top --url",
    "segment": "--background --background-classes --background-level --background-threshold "
    "--classes --fit --format --holes --min-area-share --mode --model --output --overwrite "
    "--precision --quality --resolution --url",
}
# Of `sets` by the student, on dc25c9b8.
SCORES = {
    "zero-shot segmentation: mIoU": 7.0893,
    "zero-shot segmentation: pixel accuracy": 20.2489,
    "image-text retrieval: image to text R@1": 8.3333,
    "image-text retrieval: image to text R@5": 33.3333,
    "image-text retrieval: image to text R@10": 75.0,
    "image-text retrieval: text to image R@1": 12.5,
    "image-text retrieval: text to image R@5": 41.6667,
    "image-text retrieval: text to image R@10": 87.5,
    "zero-shot classification: top-1": 33.3333,
    "kNN classification: top-1": 16.6667,
    "linear classification: top-1": 16.6667,
}
NAMES = ("apple", "car", "dog", "house", "tree")


def test_commands_and_their_options_stay() -> None:
    for command, wanted in HELP.items():
        printed = tipserve(*command.split(), "--help").stdout
        words = set(re.findall(r"(?:(?<=[\s│])|^)-?-?[a-z][a-z-]*", printed))
        assert set(wanted.split()) <= words, command


def test_a_mask_is_that_of_the_api_for_every_engine(student: Server, tmp_path: Path) -> None:
    answer = httpx.post(
        f"{student.rest}/v1/images:segment?classes={MEAL}",
        content=SCENE.read_bytes(),
        headers={"Content-Type": "image/png", "Accept": "image/png"},
        timeout=LIMIT_S,
    )
    wanted = np.asarray(Image.open(io.BytesIO(answer.content)))
    for engine in (LOCAL, [f"--url={student.rest}"], [f"--url=grpc://{student.grpc}"]):
        file = tmp_path / "mask.png"
        done = tipserve("segment", SCENE, f"--classes={MEAL}", "--fit=squash", "-o", file, *engine)
        assert "1 burger: " in done.stdout
        assert (np.asarray(Image.open(file)) != wanted).mean() < 1e-3


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_a_folder_becomes_a_coco_file(student: Server, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    options = ("--classes=dog,grass", "--format=coco", "--min-area-share=0.01", "-o", file)
    done = tipserve("segment", folder, *options, f"--url={student.rest}", check=False)
    assert done.returncode == 3, done.stderr  # an image was skipped
    found = json.loads(file.read_text())
    names = [f"{index}.jpg" for index in range(12) if index != 3]
    assert sorted(one["file_name"] for one in found["images"]) == sorted(names)
    assert [one["name"] for one in found["categories"]] == ["dog", "grass"]
    assert found["annotations"]
    sizes = {one["id"]: (one["height"], one["width"]) for one in found["images"]}
    for one in found["annotations"]:
        mask_HW = coco_masks.decode(one["segmentation"])
        assert mask_HW.shape == sizes[one["image_id"]]
        assert mask_HW.sum() == one["area"]


def test_a_killed_job_continues_to_the_same_rows(student: Server, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(120):
        (folder / f"{index:03}.jpg").write_bytes(photo(index, (300, 200)))
    (folder / "bad.jpg").write_bytes(b"nonsense")
    job = ["embed", str(folder), f"--url=grpc://{student.grpc}", "--part-items=4", "-o"]
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert tipserve(*job, whole, check=False).returncode == 3

    process = subprocess.Popen([*TIPSERVE, *job, out], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as lines:
        assert lines.readline().startswith("image 1 of 121: ")
        while not list(Path(f"{out}.parts").glob("part-*")):
            time.sleep(0.01)
        process.kill()
        assert process.wait(LIMIT_S) == -signal.SIGKILL
    written = list(Path(f"{out}.parts").glob("part-*"))
    assert 0 < len(written) < 31
    assert not out.exists()

    assert tipserve(*job, out, check=False).returncode == 3
    before, after = pq.read_table(whole), pq.read_table(out)
    assert after.drop(["cls1"]).equals(before.drop(["cls1"]))
    one, other = (np.stack(table["cls1"].to_numpy()) for table in (before, after))
    np.testing.assert_allclose(one, other, atol=1e-5)
    errors = [Path(tmp_path / f"{name}.errors.jsonl").read_bytes() for name in ("whole", "out")]
    assert errors[0] == errors[1]


def test_scores_of_a_small_set(student: Server, sets: list[str], tmp_path: Path) -> None:
    tipserve("evaluate", f"-o={tmp_path / 'out'}", f"--url={student.rest}", *sets)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {
        f"{one['task']}: {one['metric']}": one["value"]
        for one in report["scores"]
        if one["row"] == "model"
    }
    assert {name: found[name] for name in SCORES} == pytest.approx(SCORES, abs=0.1), found


def test_a_head_of_ones_own_is_trained_and_served(tmp_path: Path) -> None:
    for name in ("images", "masks", "heads"):
        (tmp_path / name).mkdir()
    for seed in range(10):
        image, mask = boxes(seed)
        image.save(tmp_path / "images" / f"{seed}.png")
        mask.save(tmp_path / "masks" / f"{seed}.png")
    given = [f"--images={tmp_path / 'images'}", f"--masks={tmp_path / 'masks'}"]
    head = tmp_path / "heads" / "boxes.safetensors"
    command = [sys.executable, "-m", "training", "head", "--model", "bundled-student"]
    done = run(*command, "--names=red,blue", "--output", head, *given, timeout_s=240)
    assert "10 images, 2 classes and the background; on held-out images mean IoU" in done.stdout

    content = (tmp_path / "images" / "3.png").read_bytes()
    with start_server(*LOCAL, "--runtime=onnx", f"--heads={tmp_path / 'heads'}") as server:
        masks = []
        for url in (server.rest, f"grpc://{server.grpc}"):
            with Client(url) as client:
                (found,) = client.segment(content, ["head:boxes"])
                masks.append(found.labels)
                assert [one.name for one in found.classes] == ["red", "blue"]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] == np.asarray(boxes(3)[1])).mean() > 0.8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, one of them broken."""
    path = tmp_path / "photos"
    path.mkdir()
    for index in range(12):
        data = b"nonsense" if index == 3 else photo(index, (90 + index, 60))
        (path / f"{index}.jpg").write_bytes(data)
    return path


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Arguments for one small set of each kind."""
    rng = np.random.default_rng(0)
    for index in range(12):
        size = (90 + 3 * index, 70)
        split = f"split/{('train', 'val')[index % 2]}/{NAMES[index // 4]}"
        for place in ("images", "captioned", split):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / f"{index}.png").write_bytes(photo(index, size, "PNG"))
        caption = f"a {NAMES[index % 5]} and a {NAMES[index // 3]}\nphoto {index}"
        (tmp_path / "captioned" / f"{index}.txt").write_text(caption)
        labels = rng.integers(0, 6, (7, 9 + index)).astype(np.uint8)
        labels[labels == 5] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        mask.save(tmp_path / "masks" / f"{index}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    segmentation = [str(tmp_path / name) for name in ("images", "masks", "names.txt")]
    split = f"{tmp_path / 'split'}"
    return [
        *("--segmentation", *segmentation, f"--retrieval={tmp_path / 'captioned'}"),
        *(f"--classification={split}/val", f"--knn={split}", f"--linear={split}"),
    ]


def boxes(seed: int) -> tuple[Image.Image, Image.Image]:
    """A red and a blue rectangle on noise, and its mask."""
    rng = np.random.default_rng(seed)
    pixels: Any = np.full((112, 140, 3), (120, 120, 110))
    labels = np.zeros((112, 140), np.uint8)
    for label, colour in enumerate(((220, 40, 30), (20, 60, 230)), start=1):
        top, left = rng.integers(0, 42), (label - 1) * 70
        place = np.s_[top : top + 70, left : left + 56]
        pixels[place], labels[place] = colour, label
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), Image.fromarray(labels)
