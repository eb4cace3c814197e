"""A head of one's own classes, which the command trains on folders and a running server loads.

Heads of masks are in `tests/promises/test_commands.py`.
"""

from pathlib import Path

import pytest

from model.package import ModelPackage
from tests.end_to_end.client import over_both
from tests.end_to_end.conftest import RunService
from tests.promises.test_commands import boxes
from training.__main__ import main

PLACES = {"red": (0, 42, 56, 70), "dark_blue": (70, 42, 126, 70)}


def test_a_running_server_classifies_by_it(
    run_service: RunService,
    tiny_package: ModelPackage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, place in PLACES.items():
        (tmp_path / "classes" / name).mkdir(parents=True)
        for seed in range(10):
            boxes(seed)[0].crop(place).save(tmp_path / "classes" / name / f"{seed}.png")
    heads = tmp_path / "heads"
    heads.mkdir()
    head = ["head", f"--model={tiny_package.path}", f"--output={heads / 'colours.safetensors'}"]
    with run_service(f"--heads={heads}") as service:
        assert main([*head, f"--images={tmp_path / 'classes'}"]) == 0
        said = capsys.readouterr().out
        assert "20 images, 2 classes; on held-out images mean accuracy" in said
        images = [str(tmp_path / "classes" / name / "0.png") for name in PLACES]
        found = over_both(service, "classify", {"images": images, "classes": ["head:colours"]})
    # Folders are in alphabetical order: dark blue, red.
    assert [found[f"{index}.label"][0] for index in (0, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names=red"], "has the label 2"),
        (["--names=red,blue,green"], "no mask has a pixel of: green"),
        ([], "give --masks and --names together"),
    ],
)
def test_wrong_names_of_masks_are_explained(
    tiny_package: ModelPackage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    for name, number in (("images", 0), ("masks", 1)):
        (tmp_path / name).mkdir()
        for seed in range(10):
            boxes(seed)[number].save(tmp_path / name / f"{seed}.png")
    given = [f"--{name}={tmp_path / name}" for name in ("images", "masks")]
    head = ["head", f"--model={tiny_package.path}", f"--output={tmp_path / 'wrong.safetensors'}"]
    assert main([*head, *given, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong.safetensors").exists()
