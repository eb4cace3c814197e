"""`tipserve evaluate`: its report, comparison with an earlier one."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.labelled.known import KNOWN
from tests.tipserve_cli.conftest import Fake
from tipserve_cli.program import DONE, FAILED, main, new_app

PAGE = Path(__file__).resolve().parents[3] / "docs/evaluation.md"
# Each command for released weights, with the published scores.
RECIPES = re.findall(r"^tipserve (evaluate --model google.+?) +# (.+)$", PAGE.read_text(), re.M)


@pytest.fixture
def scenes(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of 40 x 60 with masks; the fake engine finds the first class everywhere."""
    for index, label in enumerate((0, 1)):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "images" / f"{index}.png")
        mask = np.full((40, 60), label, np.uint8)
        mask[:, :30] = 0
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    (tmp_path / "names.txt").write_text("cat & mouse\ndog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SEGMENT = ["evaluate", "--segmentation", "images", "masks", "names.txt"]


class Links(HTMLParser):
    """Every address in a page, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_report_has_scores_intervals_confusions_and_masks(
    scenes: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(SEGMENT) == DONE
    printed = capsys.readouterr()
    assert "zero-shot segmentation | images | model | mIoU | 37.50 | n 2" in printed.out
    assert "evaluation/report.html" in printed.out
    assert "image 2 of 2: 0 skipped" in printed.err
    assert sorted(path.name for path in (scenes / "evaluation").iterdir()) == [
        "answers.sqlite", "counts.npz", "report.html", "report.json"
    ]  # fmt: skip
    document = json.loads((scenes / "evaluation" / "report.json").read_text())
    score = next(one for one in document["scores"] if one["metric"] == "mIoU")
    # cat: 75 % of all pixels, and all are called so. dog: none is found.
    assert (score["value"], score["count"]) == (37.5, 2)
    assert score["low"] is None  # of two images
    (task,) = document["tasks"]
    assert task["classes"] == [
        {"name": "dog", "value": 0.0},
        {"name": "cat & mouse", "value": 75.0},
    ]
    assert task["confused"] == [{"truth": "dog", "predicted": "cat & mouse", "percent": 100.0}]
    page = (scenes / "evaluation" / "report.html").read_text()
    links = Links(page)
    assert len(links.addresses) == 2 * 3
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not {"script", "link", "a", "iframe"} & set(links.tags)
    assert "cat &amp; mouse" in page
    assert "37.50" in page


def test_the_same_command_asks_the_model_nothing_again(scenes: Path, fake: Fake) -> None:
    Image.new("RGB", (60, 40)).save(scenes / "images" / "1.png")
    assert main(SEGMENT) == DONE
    asked = fake.num_images
    assert asked == 2 * 2  # all names, and those that the image shows
    assert main([*SEGMENT, "--reduce-zero-label"]) == DONE
    once_more = fake.num_images
    assert main(SEGMENT) == main([*SEGMENT, "--reduce-zero-label"]) == DONE
    assert fake.num_images == once_more


def test_a_report_is_compared_with_an_earlier_one(
    scenes: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SEGMENT, "-o=old"]) == DONE
    assert main([*SEGMENT, "-o=new", "--against=old"]) == DONE
    printed = capsys.readouterr().out
    assert "model - earlier | mIoU | 0.00 | n 2" in printed
    Image.fromarray(np.ones((40, 60), np.uint8)).save(scenes / "masks" / "0.png")
    assert main([*SEGMENT, "-o=new", "--against=old"]) == FAILED
    assert "was measured on other images" in capsys.readouterr().err


def test_depth_and_normals_are_scored_if_the_model_has_heads(
    scenes: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(2):
        depth = np.full((40, 60), 1125 + 500 * index, np.uint16)  # the model finds one metre
        normals = np.full((40, 60, 3), (0, 1, 1), np.float32) / 2**0.5
        for folder in ("depths", "normals"):
            (scenes / folder).mkdir(exist_ok=True)
        Image.fromarray(depth).save(scenes / "depths" / f"{index}.png")
        np.save(scenes / "normals" / f"{index}.npy", normals)
    command = ["evaluate", "--depth", "images", "depths", "--normals", "images", "normals"]
    fake.outputs = ("values", "depth")
    assert main(command) == FAILED
    assert "fake has no head for normals" in capsys.readouterr().err
    assert fake.num_images == 0
    fake.outputs = ("depth", "normals")
    assert main(command) == DONE
    printed = capsys.readouterr().out
    assert "depth | images | model | RMSE (m) | 0.375 | n 2" in printed
    assert "depth | images | model | delta1 | 50.00 | n 2" in printed
    assert "surface normals | images | model | mean angle (degrees) | 45.00 | n 2" in printed
    page = (scenes / "evaluation" / "report.html").read_text()
    assert "<td>RMSE (m)</td><td class=number>0.375</td><td></td>" in page
    # Another true depth is another set.
    Image.fromarray(np.full((40, 60), 2000, np.uint16)).save(scenes / "depths" / "0.png")
    assert main([*command, "-o=new", "--against=evaluation"]) == FAILED
    assert "'depth | images' was measured on other images" in capsys.readouterr().err


def test_captions_that_are_left_out_are_counted(
    scenes: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, captions in enumerate(('["a"]', '{"captions": ["a cat", 3]}')):
        (scenes / "images" / f"{index}.json").write_text(captions)
        (scenes / "images" / f"{index}.txt").write_text("a dog\n")
    assert main(["evaluate", "--retrieval", "images"]) == DONE
    printed = capsys.readouterr()
    assert "image-text retrieval | images | model | image to text R@1" in printed.out
    reasons = "the .json file is no JSON object (1), a caption is no text (1)"
    assert f"images: captions left out: {reasons}" in printed.err


def test_the_commands_for_released_weights_exist_and_state_the_published_scores() -> None:
    assert len(RECIPES) == 9
    for command, scores in RECIPES:
        _, bound, _ = new_app().parse_args(shlex.split(command))
        asked = bound.arguments["options"]
        if asked.dataset is None:
            assert asked.knn is not None
            continue
        size = bound.arguments["model"].model.removeprefix("google/tipsv2-")
        title = {"l14": "TIPSv2 L/14", "g14": "TIPSv2 g/14"}[size]
        published = KNOWN[asked.dataset[0]].published
        known = {str(one.value) for one in published if one.model == title}
        assert set(re.findall(r"\d+\.\d+", scores)) <= known, command
