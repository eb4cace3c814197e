"""Training, measuring and resuming the arms."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.reproduce.conftest import SCALE, Finish, toy_scenes
from training.evaluate.zero_shot_segmentation import class_ids
from training.methods.base import Method
from training.methods.distill import Distill
from training.methods.pretrain import Pretrain
from training.methods.teacher import HEAD_FILE
from training.reproduce import runner as runner_module
from training.reproduce.cells import NAMES, CellScenes
from training.reproduce.plan import (
    CONTRAST,
    IBOT,
    IBOT_PP,
    ONE_CAPTION_START,
    START,
    WARM,
    Arm,
    arms,
    file_name,
    student_of,
    training_config,
)
from training.reproduce.runner import (
    LARGEST,
    PAINTED,
    PATCHES,
    Setup,
    build_method,
    mutual_information,
    naming_rate,
    patch_labels,
    patches_per_object,
    result_path,
    run_all,
    segment,
    train_arm,
)
from training.trainer import Trainer

BY_NAME = {arm.name: arm for part in arms(SCALE) for arm in part}


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Plan these arms alone."""

    def few(_: object, seeds: list[int]) -> list[tuple[int, Arm]]:
        return [(seed, BY_NAME[name]) for seed in seeds for name in names]

    monkeypatch.setattr(runner_module, "planned", few)


def on_another_machine(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> Setup:
    """A setup without weights, on a CPU that trains slightly different ones."""
    train = runner_module.train_arm

    def train_there(there: Setup, arm: Arm, seed: int) -> Method:
        method = train(there, arm, seed)
        folder = training_config(SCALE, arm, seed, there.runs).folder
        path = folder / "model" / "model.safetensors"
        weights = {name: value * (1 + 1e-6) for name, value in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
        return method

    monkeypatch.setattr(runner_module, "train_arm", train_there)
    return replace(setup, runs=setup.runs.with_name("elsewhere"))


def test_a_patch_has_the_label_of_most_of_its_pixels() -> None:
    ids = class_ids(NAMES)
    mask = np.zeros((1, 28, 28), np.int16)
    mask[0, :14, :14] = ids[2]
    mask[0, 14:, :8] = ids[5]  # 8 of 14 columns
    mask[0, 14:, 14:19] = ids[7]  # 5 of 14
    scenes = CellScenes(cells_SKhw=np.zeros((1, 1, 2, 2), np.float16), mask_SHW=mask, captions=())
    scenes = replace(scenes, captions=toy_scenes(1, 0).captions)
    label_SN = patch_labels(scenes, 2)
    assert label_SN.tolist() == [[3, 0, 6, 0]]
    assert patches_per_object(label_SN) == [1, 1]


def test_perfect_patches_segment_perfectly_and_painting_does_not() -> None:
    scenes = toy_scenes(4, 0)
    labels = patch_labels(scenes, SCALE.cells.grid)
    classes = np.eye(len(NAMES), dtype=np.float32)
    patches = classes[labels - 1]
    found = segment({PATCHES: patches, "values": patches, "cls1": patches[:, 0]}, scenes, classes)
    assert found[PATCHES]["which"] > 95
    assert found[PAINTED]["which"] == pytest.approx(50, abs=1)
    assert found[LARGEST]["mIoU"] < found[PATCHES]["mIoU"]
    assert naming_rate(patches[:, 0], scenes, torch.from_numpy(classes)) == 100
    assert naming_rate(-patches.sum(1), scenes, torch.from_numpy(classes)) == 0


@pytest.mark.parametrize("tells", [True, False])
def test_targets_that_tell_the_name_have_its_entropy_as_information(
    toy: Setup, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    new = replace(BY_NAME[IBOT_PP], start=None)
    method = build_method(toy, new, 0)
    assert isinstance(method, Pretrain)
    assert method.teacher_tower is not None
    scenes, label_SN = toy.sets["val"], np.zeros((3, 16), np.int64)
    label_SN[:, 4:8], label_SN[:, 8:12] = 1, 2
    assigned = torch.eye(3)[
        torch.from_numpy(label_SN.flatten() if tells else label_SN.flatten() * 0)
    ]
    monkeypatch.setattr(method.centering, "forward", lambda _: assigned)
    found = mutual_information(method, scenes, label_SN)
    assert found is not None
    assert found["object bound"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["name bound"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["object"] == pytest.approx(math.log(2) if tells else 0, abs=1e-3)
    assert found["name"] == pytest.approx(math.log(2) if tells else 0, abs=1e-3)


def test_arms_continue_from_their_start_with_its_head(toy: Setup) -> None:
    start = train_arm(toy, BY_NAME[START], 0)
    branches = [build_method(toy, BY_NAME[arm], 0) for arm in (IBOT, IBOT_PP)]
    theirs = start.state_dict()
    for branch in branches:
        assert isinstance(branch, Pretrain)
        for name, value in branch.state_dict().items():
            if name in theirs and not name.startswith("model.text_model"):
                assert torch.equal(value, theirs[name]), name


def test_students_predict_their_teachers_prototypes(toy: Setup) -> None:
    train_arm(toy, BY_NAME[START], 0)
    teacher = train_arm(toy, BY_NAME[IBOT], 0)
    warm = build_method(toy, BY_NAME[student_of(IBOT, WARM)], 0)
    cold = build_method(toy, BY_NAME[student_of(IBOT, "mask 0")], 0)
    assert isinstance(warm, Distill)
    assert isinstance(cold, Distill)
    assert isinstance(teacher, Pretrain)
    ours, theirs = warm.model.vision_model, teacher.model.vision_model
    for value, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert not torch.equal(next(cold.model.vision_model.parameters()), next(theirs.parameters()))
    patches = torch.randn(1, 3, SCALE.width)
    rows, assign = warm._teacher.assign_patches(patches)
    assert teacher.teacher_head is not None
    expected = teacher.centering(teacher.teacher_head(patches))
    torch.testing.assert_close(assign(rows), expected.flatten(0, 1))


def test_a_finished_arm_is_not_trained_again(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, START, IBOT_PP)
    made: list[dict[str, Any]] = []
    run = partial(run_all, results=tmp_path / "r", after_each=made.append)
    run(toy, [0])
    assert [(result["arm"], result["seed"]) for result in made] == [(START, 0), (IBOT_PP, 0)]
    path = result_path(tmp_path / "r", 0, IBOT_PP)
    assert json.loads(path.read_text(encoding="utf-8")) == made[1]
    assert made[0]["information"] is None
    assert made[1]["information"].keys() == {"object", "object bound", "name", "name bound"}
    assert made[1]["patches"] == 8
    assert {"cls1", "patch_visible", "patch_masked"} <= made[1]["losses"].keys()
    run(toy, [0, 1])
    assert [result["seed"] for result in made] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="other settings"):
        run(replace(toy, scale=replace(SCALE, pretrain_steps=5)), [0])


def test_further_arms_train_what_they_build_on_where_its_weights_are_missing(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    run = partial(run_all, results=tmp_path / "r", after_each=made.append)
    only(monkeypatch, START, IBOT)
    run(toy, [0])
    elsewhere = replace(toy, runs=tmp_path / "elsewhere")
    only(monkeypatch, START, IBOT, student_of(IBOT, WARM))
    run(elsewhere, [0])
    assert [result["arm"] for result in made] == [START, IBOT, student_of(IBOT, WARM)]
    here, there = (
        torch.load(setup.runs / "seed-0" / file_name(IBOT) / HEAD_FILE)
        for setup in (toy, elsewhere)
    )
    assert all(torch.equal(there[name], value) for name, value in here.items())


def test_no_arm_joins_results_that_come_from_other_weights(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    results = tmp_path / "r"
    run = partial(run_all, results=results, after_each=made.append)
    only(monkeypatch, START, IBOT)
    run(toy, [0])
    assert made[1]["built_on"] == {START: made[0]["weights"]}
    elsewhere = on_another_machine(monkeypatch, toy)
    for further in (CONTRAST, ONE_CAPTION_START, student_of(IBOT, WARM)):
        only(monkeypatch, START, IBOT, further)
        with pytest.raises(ValueError, match=r"other weights of 'start'.*another --results"):
            run(elsewhere, [0])
    assert len(made) == 2
    run(elsewhere, [1])  # another seed
    shutil.rmtree(results / "seed-0")
    run(elsewhere, [0])  # all of the seed is trained again
    assert made[-1]["built_on"][IBOT] != made[1]["weights"]


def test_a_teacher_that_is_trained_again_must_be_the_one_of_its_students(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    student = student_of(IBOT, WARM)
    only(monkeypatch, START, IBOT, student)
    run = partial(run_all, results=tmp_path / "r", after_each=made.append)
    run(toy, [0])
    assert made[2]["built_on"] == {r["arm"]: r["weights"] for r in made[:2]}
    result_path(tmp_path / "r", 0, IBOT).unlink()
    run(toy, [0])
    assert made[3]["weights"] == made[1]["weights"]
    result_path(tmp_path / "r", 0, IBOT).unlink()
    elsewhere = on_another_machine(monkeypatch, toy)
    shutil.copytree(toy.runs / "seed-0" / START, elsewhere.runs / "seed-0" / START)
    with pytest.raises(ValueError, match="other weights of 'ibot'"):
        run(elsewhere, [0])


def test_no_arm_joins_results_that_do_not_say_where_they_come_from(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: Finish, results: Path
) -> None:
    finish(START, 0, patches=1.0)
    only(monkeypatch, START)
    run = partial(run_all, results=results, after_each=lambda _: None)
    run(toy, [0])  # nothing is missing
    only(monkeypatch, START, IBOT)
    with pytest.raises(ValueError, match="do not say from which weights"):
        run(toy, [0])
    assert not toy.runs.exists()  # refused before anything is trained
    run(toy, [1])


def test_a_stopped_arm_resumes_and_ends_the_same(
    toy: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(toy, runs=tmp_path / "stopped")
    whole = train_arm(toy, BY_NAME[START], 0)
    with monkeypatch.context() as patch:
        train = Trainer.train
        patch.setattr(Trainer, "train", lambda self: train(self, until=1))
        train_arm(stopped, BY_NAME[START], 0)
    resumed = train_arm(stopped, BY_NAME[START], 0)
    for value, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(value, expected)
