"""A segmentation head of one's own classes: trained into a package, served, scored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.package import ModelPackage, open_package
from tests.end_to_end.client import over_both
from tests.end_to_end.conftest import RunService
from tests.processes.server import Server
from tests.training.dense.conftest import write_masks
from tipserve_cli.program import DONE
from tipserve_cli.program import main as tipserve
from training.__main__ import main

NAMES = ["ground", "red", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with masks to train on, and others."""
    folder = tmp_path_factory.mktemp("trained")
    write_masks(folder / "shown", 20, np.random.default_rng(0))
    write_masks(folder / "others", 8, np.random.default_rng(1))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_package: ModelPackage) -> ModelPackage:
    """The tiny package with a head of the classes."""
    shown = [str(folder / "shown" / name) for name in ("images", "masks", "names.txt")]
    options = {"--model": tiny_package.path, "--folder": folder / "run", "--steps": 250}
    options |= {"--output": folder / "package", "--kind": "linear"}
    given = [str(part) for pair in options.items() for part in pair]
    assert main(["dense-heads", "--segmentation", *shown, *given]) == 0
    return open_package(folder / "package")


@pytest.fixture(scope="module")
def service(run_service: RunService, trained: ModelPackage) -> Iterator[Server]:
    with run_service("--precision=fp32", packages=(trained,)) as running:
        yield running


def others(folder: Path) -> list[tuple[bytes, Any]]:
    """Images with their masks, whose labels count from 0."""
    images = sorted((folder / "others" / "images").iterdir())
    masks = [folder / "others" / "masks" / path.name for path in images]
    return [
        (path.read_bytes(), np.asarray(Image.open(mask)))
        for path, mask in zip(images, masks, strict=True)
    ]


def test_it_is_served_over_both_better_than_names_and_scored_as_it_is_served(
    service: Server, trained: ModelPackage, folder: Path
) -> None:
    """A labelled pixel is right or wrong; labels of answers count from 1."""
    right: dict[str, list[Any]] = {"head": [], "names": []}
    for image, truth in others(folder):
        counts = truth != 255
        for name, classes in (("head", ["model"]), ("names", NAMES)):
            asked = {"images": [image], "classes": classes}
            labels = over_both(service, "segment", asked)["0.labels"]
            right[name].append(labels[counts] == truth[counts] + 1)
    by_head, by_names = ([np.mean(one) for one in ones] for ones in right.values())
    assert (np.array(by_head) > np.array(by_names)).all()
    assert np.mean(by_head) > 0.75

    sets = [str(folder / "others" / name) for name in ("images", "masks", "names.txt")]
    found = {}
    for place in (
        f"--model={trained.path}",
        f"--url={service.rest}",
        f"--url=grpc://{service.grpc}",
    ):
        output = folder / "scores"
        options = ["--classes=model", place, f"-o={output}", "--segmentation", *sets]
        options += ["--precision=fp32"] if place.startswith("--model") else []
        assert tipserve(["evaluate", *options]) == DONE
        scores = json.loads((output / "report.json").read_text())["scores"]
        found[place] = {
            one["metric"]: one["value"]
            for one in scores
            if (one["task"], one["row"]) == ("segmentation by own classes", "model")
        }
    here, rest, rpc = found.values()
    assert here == pytest.approx(rest, abs=0.1)
    assert rpc == rest
    wanted = 100 * np.concatenate(right["head"]).mean()
    assert rest["pixel accuracy"] == pytest.approx(wanted, abs=1e-3)
