"""The distillation of a space: axes, targets at the right places, and a whole run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Encoder, Tipsv2Encoder, load_encoder
from tests.training.conftest import make_tiny_config
from tests.training.photographs.miniature import view_source
from training import run as run_module
from training.config import TrainingConfig, ViewsConfig
from training.data.folder import DataFolder
from training.evaluate.sets import development_benchmarks
from training.inputs import views as views_module
from training.inputs.views import ViewInputs, crop_views
from training.methods.space import SpaceConfig
from training.observation import read_log
from training.photographs import teacher_views as pool_module
from training.photographs.teacher_views import VIEW_SIDE, Look, Views
from training.run import run
from training.targets import Space, fit_space


def test_cosines_of_names_change_least_and_axes_turn_to_the_start() -> None:
    generator = torch.Generator().manual_seed(0)
    names_KT = torch.randn(40, 6, generator=generator) @ torch.randn(6, 20, generator=generator)
    start_KD = (
        F.normalize(names_KT, dim=-1) @ torch.linalg.qr(torch.randn(20, 6, generator=generator)).Q
    )
    plain, turned = fit_space(names_KT, 6), fit_space(names_KT, 6, start_KD)
    cosines_KK = F.cosine_similarity(names_KT[:, None], names_KT[None], dim=-1)
    for space in (plain, turned):
        names_KD = space.reduce(names_KT)
        assert torch.allclose(names_KD @ names_KD.T, cosines_KK, atol=1e-5)

    def likeness(space: Space) -> float:
        return F.cosine_similarity(space.reduce(names_KT), start_KD, dim=-1).mean().item()

    assert likeness(turned) > likeness(plain) + 0.1
    with pytest.raises(ValueError, match="21 axes need as many names"):
        fit_space(names_KT, 21)


def halves(count: int) -> Views:
    """Views whose left half is red and shows name 3, and whose right half is blue with no name."""
    pixels = np.zeros((count, VIEW_SIDE, VIEW_SIDE, 3), np.uint8)
    pixels[:, :, : VIEW_SIDE // 2, 0] = 255
    pixels[:, :, VIEW_SIDE // 2 :, 2] = 255
    patches = np.zeros((count, 8, 8, 2), np.float16)
    patches[:, :, :4, 0], patches[:, :, 4:, 1] = 1, 1
    names = np.full((count, 64, 64), -1, np.int16)
    names[:, :, :32] = 3
    return Views(
        pixels_PSS3=pixels, patches_PggD=patches, whole_PD=patches[:, 0, 0], names_Pmm=names
    )


def test_targets_follow_their_pixels_through_crops_and_mirrors() -> None:
    pixels_B3SS, cells = crop_views(np.random.default_rng(0), halves(16), 112)
    red_BN = F.avg_pool2d(pixels_B3SS, 14)[:, 0].flatten(1)
    blue_BN = F.avg_pool2d(pixels_B3SS, 14)[:, 2].flatten(1)
    is_red_BN, is_blue_BN = (x > 0.95 * x.amax(1, keepdim=True) for x in (red_BN, blue_BN))
    assert (is_red_BN[:, 0] != is_red_BN[0, 0]).any()  # some are mirrored
    four_BN4 = F.unfold(cells.name_Bpp[:, None].float(), 2, stride=2).transpose(1, 2)
    assert (four_BN4[is_red_BN] == 3).all()
    assert (four_BN4[is_blue_BN] == -1).all()
    assert (cells.patches_VND[is_red_BN][:, 0] > 0.7).all()
    assert (cells.patches_VND[is_blue_BN][:, 1] > 0.7).all()


def region(data: Path, size: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A grey photograph in place of one of the package."""
    del data
    return np.full((size, size, 3), index, np.uint8), np.zeros((size, size), np.int32)


def compile_in_torch(teacher: Encoder) -> Look:
    """The teacher in torch: here a Tipsv2Model, which OpenVINO's tracer cannot follow."""

    @torch.inference_mode()
    def look(pixels_SS3: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pixels_13SS = torch.from_numpy(pixels_SS3).permute(2, 0, 1)[None].float() / 255
        cls1_1D, _, _, values_1ND = teacher.vision(pixels_13SS)
        return values_1ND[0].numpy(), cls1_1D[0].numpy()

    return look


@pytest.fixture
def config(
    data_folder: DataFolder,
    tokenizer: Tipsv2Tokenizer,
    student_model: Tipsv2Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TrainingConfig:
    """Four steps below a teacher that is a small Tipsv2Model, which is also the start."""
    monkeypatch.setattr(pool_module, "region_view", region)
    monkeypatch.setattr(views_module, "compile_vision", compile_in_torch)
    few = partial(development_benchmarks, num_scenes=2)
    monkeypatch.setattr(views_module, "development_benchmarks", few)
    Tipsv2Encoder(student_model.eval(), tokenizer).save(tmp_path / "teacher")
    tiny = make_tiny_config(tmp_path)
    drawings = view_source().drawings
    names = tuple(f"{name} {i}" for i in range(8) for name in drawings.names)
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    many = replace(
        drawings, names=names, rgba_MSS4=np.tile(drawings.rgba_MSS4, (8, 1, 1, 1)),
        name_M=np.arange(len(names)),
    )  # fmt: skip
    many.save(folder / "drawings.npz")
    return replace(
        tiny,
        method=SpaceConfig(),
        data=ViewsConfig(folder=data_folder.path, size=56, part_size=8, num_parts=2),
        teacher=tmp_path / "teacher",
        start=tmp_path / "teacher",
        text_warmup_steps=0,
        num_steps=4,
        validate_every=4,
    )


def test_a_run_resumes_with_the_same_views(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(config) == config.folder / "model"
    log = read_log(config.folder)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert "val/patches" in log[-1]
    kept = sorted(path.name for path in (config.folder / "views").iterdir())
    assert kept == ["views-0000.npz", "views-0001.npz"]  # four steps of four crops
    assert load_encoder(config.folder / "model").native_size == 56

    monkeypatch.setattr(ViewInputs, "_embed", lambda _: pytest.fail("a view was computed again"))
    run_module.run(replace(config, num_steps=5, validate_every=0))
    assert read_log(config.folder)[-1]["step"] == 5


def test_space_and_views_go_together(config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="go together"):
        replace(config, data=make_tiny_config(Path()).data)
    with pytest.raises(ValueError, match="needs a teacher"):
        replace(config, teacher=None)
    missing = replace(config, teacher=config.folder / "none")
    with pytest.raises(FileNotFoundError, match="training photographs"):
        run_module.open_inputs(missing)
