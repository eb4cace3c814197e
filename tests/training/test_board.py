"""What is written for TensorBoard is there when its files are read back: scalars and pictures."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.board import BOARD_FOLDER, Board, label_colours, pca_colours, scene_panel
from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.data.scenes import Scene, SceneConfig, SceneSource, compose_scene
from training.evaluate.benchmark import development_benchmarks
from training.evaluate.zero_shot_segmentation import class_ids
from training.inputs import scenes as scene_inputs
from training.log import read_log
from training.run import run

SIDE, PATCH = 56, 14


def read_board(run_folder: Path) -> EventAccumulator:
    """Everything in a run's event files."""
    # Pictures are thinned out by default.
    board = EventAccumulator(str(run_folder / BOARD_FOLDER), size_guidance={"images": 0})
    return board.Reload()


def scalars(board: EventAccumulator, tag: str) -> dict[int, float]:
    """Values by their step, each of which is there once."""
    events = board.Scalars(tag)
    values = {event.step: event.value for event in events}
    assert len(values) == len(events)
    return values


def pictures(board: EventAccumulator, tag: str) -> list[tuple[int, NDArray[np.uint8]]]:
    return [
        (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string))))
        for event in board.Images(tag)
    ]


def test_patches_are_coloured_by_their_three_main_directions() -> None:
    rng = np.random.default_rng(0)
    directions_3D = np.linalg.qr(rng.normal(size=(20, 3)))[0].T
    parts_BN3 = rng.exponential(size=(2, 50, 3)) * [9.0, 3.0, 1.0]
    patches_BND = (parts_BN3 @ directions_3D + 5.0 + 1e-3 * rng.normal(size=(2, 50, 20))).astype(
        np.float32
    )
    colours_BN3 = pca_colours(patches_BND)
    assert colours_BN3.shape == (2, 50, 3)
    assert colours_BN3.dtype == np.uint8
    for part, colour in zip(parts_BN3.reshape(-1, 3).T, colours_BN3.reshape(-1, 3).T, strict=True):
        # The more of a direction, the brighter its channel: it is not turned round.
        assert np.corrcoef(part, colour)[0, 1] > 0.85
    assert colours_BN3.min() == 0
    assert colours_BN3.max() == 255
    # The same patches in another frame of the same features have the same colours.
    turned_BND = patches_BND @ np.linalg.qr(rng.normal(size=(20, 20)))[0].astype(np.float32)
    assert np.abs(pca_colours(turned_BND).astype(int) - colours_BN3).max() <= 2


def test_patches_that_are_all_alike_or_narrow_have_a_colour() -> None:
    assert not pca_colours(np.ones((1, 4, 8), np.float32)).any()
    narrow = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    assert pca_colours(narrow).shape == (1, 4, 3)


def test_labels_have_colours_that_differ_and_background_is_black() -> None:
    labels = np.arange(30).reshape(5, 6)
    colours = label_colours(labels).reshape(-1, 3)
    assert not colours[0].any()
    assert (colours[1:].max(1) > 200).all()
    assert len({tuple(map(int, colour)) for colour in colours}) == 30
    assert np.array_equal(label_colours(labels), label_colours(labels))


@pytest.fixture(scope="module")
def shown(source: SceneSource) -> Sequence[Scene]:
    config = SceneConfig(size=SIDE, count_weights=(0.0, 1.0), twin_share=0.0)
    return [compose_scene(source, index, config) for index in range(2)]


def test_a_panel_shows_picture_patches_found_and_true_mask(
    student_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    shown: Sequence[Scene],
    source: SceneSource,
) -> None:
    names = sorted(source.names)
    panel = scene_panel(student_model.eval(), tokenizer, shown, names)
    assert panel.shape == (2 * SIDE, 4 * SIDE, 3)
    columns = panel.reshape(2, SIDE, 4, SIDE, 3).transpose(0, 2, 1, 3, 4)
    choices = {tuple(colour) for colour in label_colours(class_ids(names)[None])[0].tolist()}
    for scene, (picture, patches, predicted, true) in zip(shown, columns, strict=True):
        assert np.array_equal(picture, scene.pixels_SS3)
        assert np.array_equal(true, label_colours(scene.mask_SS))
        grid = patches[::PATCH, ::PATCH]
        assert np.array_equal(patches, grid.repeat(PATCH, axis=0).repeat(PATCH, axis=1))
        assert len({tuple(colour) for colour in grid.reshape(-1, 3).tolist()}) > 4
        assert {tuple(colour) for colour in predicted.reshape(-1, 3).tolist()} <= choices


def test_rows_become_scalars_by_their_kind_and_a_panel_a_picture(tmp_path: Path) -> None:
    board = Board(tmp_path)
    panel = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for step in (1, 2):
        board.add_row({"step": step, "loss": 2.0 / step, "val/patches": 3.0, "time_s": 9.0})
        board.add_panel(step, panel // step)
    board.close()
    read = read_board(tmp_path)
    assert sorted(read.Tags()["scalars"]) == ["score/val/patches", "train/loss"]
    assert scalars(read, "train/loss") == {1: 2.0, 2: 1.0}
    assert [step for step, _ in pictures(read, "scenes")] == [1, 2]
    for step, picture in pictures(read, "scenes"):
        assert np.array_equal(picture, panel // step)


def test_a_resumed_board_hides_what_was_written_after_the_checkpoint(tmp_path: Path) -> None:
    for from_step, factor in ((0, 1.0), (2, 10.0)):
        board = Board(tmp_path, from_step=from_step)
        for step in range(from_step + 1, 5):
            board.add_row({"step": step, "loss": factor * step})
        board.close()
    expected = {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert scalars(read_board(tmp_path), "train/loss") == expected


def test_a_run_leaves_its_curve_scores_and_pictures_on_the_board(
    tiny_config: TrainingConfig, data_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_inputs, "_TOKENIZER_SCENES", 10)
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(scene_inputs, "development_benchmarks", few)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    data = replace(tiny_config.data, folder=data_folder.path)
    config = replace(tiny_config, data=data, num_steps=4, validate_every=2)
    run(config)
    read, log = read_board(config.folder), read_log(config.folder)
    for name in ("loss", "cls1", "cls2", "ibot", "grad_norm", "step_s", "wait_s"):
        logged = {int(row["step"]): row[name] for row in log if name in row}
        assert logged
        assert scalars(read, f"train/{name}") == pytest.approx(logged, rel=1e-6), name
    scores = {int(row["step"]): row["val/values"] for row in log if "val/values" in row}
    assert list(scores) == [2, 4]
    assert scalars(read, "score/val/values") == pytest.approx(scores, rel=1e-6)
    panels = pictures(read, "scenes")
    assert [step for step, _ in panels] == [2, 4]
    scenes = development_benchmarks(data_folder, num_scenes=2)[0].scenes
    side = len(scenes[0].mask_SS)
    for _, panel in panels:
        assert panel.shape == (2 * side, 4 * side, 3)
        assert np.array_equal(panel[:side, :side], scenes[0].pixels_SS3)
        assert np.array_equal(panel[side:, 3 * side :], label_colours(scenes[1].mask_SS))
