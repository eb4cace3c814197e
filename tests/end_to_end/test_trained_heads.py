"""A segmentation head of one's own classes: trained into a package, served, scored."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model.package import ModelPackage, open_package
from tests.training.dense.conftest import write_masks
from tipserve_cli.program import DONE
from tipserve_cli.program import main as tipserve
from training.__main__ import main

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

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
def service(run_service: Callable[..., Any], trained: ModelPackage) -> Iterator["Service"]:
    with run_service("--precision=fp32", packages=(trained,)) as running:
        yield running


def others(folder: Path) -> list[tuple[bytes, Any]]:
    images = sorted((folder / "others" / "images").iterdir())
    masks = [folder / "others" / "masks" / path.name for path in images]
    return [
        (path.read_bytes(), np.asarray(Image.open(mask)))
        for path, mask in zip(images, masks, strict=True)
    ]


def accuracy(labels: Any, truth: Any) -> float:
    """Share of the labelled pixels that are right; labels count from 1, the truth from 0."""
    counts = truth != 255
    return float(np.mean(labels[counts] == truth[counts] + 1))


def test_it_is_served_over_both_and_better_than_names(service: "Service", folder: Path) -> None:
    by_head, by_names = [], []
    for image, truth in others(folder):
        own = {"images": [image], "classes": ["model"]}
        rest, rpc = (
            service.over_rest("segment", own),
            service.over_grpc("segment", own),
        )
        assert np.array_equal(rest["0.labels"], rpc["0.labels"])
        named = {"images": [image], "classes": NAMES}
        by_head.append(accuracy(rest["0.labels"], truth))
        names = service.over_grpc("segment", named)
        by_names.append(accuracy(names["0.labels"], truth))
    gain = np.array(by_head) - np.array(by_names)
    assert (gain > 0).all()
    assert np.mean(by_head) > 0.75


def test_evaluate_scores_it_as_it_is_served(
    service: "Service", trained: ModelPackage, folder: Path
) -> None:
    sets = [str(folder / "others" / name) for name in ("images", "masks", "names.txt")]
    found = {}
    for name, place in (
        ("package", f"--model={trained.path}"),
        ("rest", f"--url=http://127.0.0.1:{service.ports['http']}"),
        ("grpc", f"--url=grpc://127.0.0.1:{service.ports['grpc']}"),
    ):
        output = folder / name
        options = ["--classes=model", place, f"-o={output}", "--segmentation", *sets]
        assert tipserve(["evaluate", *options]) == DONE
        scores = json.loads((output / "report.json").read_text())["scores"]
        found[name] = {
            one["metric"]: one["value"]
            for one in scores
            if (one["task"], one["row"]) == ("segmentation by own classes", "model")
        }
    assert found["package"] == pytest.approx(found["rest"], abs=0.1)
    assert found["grpc"] == found["rest"]
    pixels = [
        accuracy(
            service.over_rest("segment", {"images": [image], "classes": ["model"]})["0.labels"],
            truth,
        )
        * (truth != 255).sum()
        for image, truth in others(folder)
    ]
    counted = sum((truth != 255).sum() for _, truth in others(folder))
    assert found["rest"]["pixel accuracy"] == pytest.approx(100 * sum(pixels) / counted, abs=1e-3)
