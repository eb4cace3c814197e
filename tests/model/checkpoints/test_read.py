"""Checkpoints of both layouts give the model that was written."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from transformers import Tipsv2Model

from model.checkpoints.checkpoint import Checkpoint, CheckpointError
from model.checkpoints.read import read_checkpoint
from model.features import text_features, vision_features
from tests.model.checkpoints.official_layout import SHAPES

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

TEXTS = ["A photo of a CAT", "grass", "na\u00efve dog running on the 3rd x-ray \U0001f642"]


@pytest.fixture(scope="module", params=list(SHAPES))
def both(request: pytest.FixtureRequest, releases: dict[str, "Release"]) -> "Both":
    release = releases[request.param]
    return release.model, read_checkpoint(release.folder), read_checkpoint(release.pair)


Both = tuple[Tipsv2Model, Checkpoint, Checkpoint]


def image_outputs(model: Tipsv2Model, size_hw: tuple[int, int]) -> list[Tensor]:
    pixels_B3HW = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    found = vision_features(model, pixels_B3HW)
    return [found.cls1_BD, found.cls2_BD, found.patches_BND, found.values_BND]


def text_outputs(checkpoint: Checkpoint) -> Tensor:
    tokens = checkpoint.tokenizer(TEXTS, padding=True, return_tensors="pt")
    return text_features(checkpoint.model, tokens["input_ids"], tokens["attention_mask"])


@pytest.mark.slow
@torch.no_grad()
def test_the_pair_gives_the_outputs_of_the_folder(both: Both) -> None:
    # The tolerance is for kernels that choose their order of adding by memory alignment.
    model, from_folder, from_pair = both
    for size_hw in [(56, 56), (28, 42)]:
        expected = image_outputs(model, size_hw)
        for checkpoint in (from_folder, from_pair):
            actual = image_outputs(checkpoint.model, size_hw)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    expected_BD = text_outputs(from_folder)
    torch.testing.assert_close(text_outputs(from_pair), expected_BD, rtol=0, atol=1e-5)


def test_every_tensor_and_setting_is_read_exactly(both: Both) -> None:
    model, *checkpoints = both
    width = model.vision_model.config.hidden_size
    for checkpoint in checkpoints:
        found = checkpoint.model.state_dict()
        assert found.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == torch.float32
        # No file holds the buffers.
        for name, buffer in model.named_buffers():
            assert torch.equal(checkpoint.model.get_buffer(name), buffer), name
        assert checkpoint.model.config.temperature_init_value == pytest.approx(0.0125)
        assert not checkpoint.model.training
        assert checkpoint.dense is None
        assert checkpoint.variant == f"w{width}d4"
        ids = checkpoints[0].tokenizer(TEXTS)["input_ids"]
        assert checkpoint.tokenizer(TEXTS)["input_ids"] == ids


@pytest.mark.parametrize(
    ("layout", "kind", "names"),
    [
        ("pair", "official-npz", "tips_v2_oss_small_text.npz tips_v2_oss_small_vision.npz"),
        ("folder", "transformers", "config.json model.safetensors"),
    ],
)
def test_the_origin_has_the_kind_and_a_digest_of_every_file(
    releases: dict[str, "Release"], layout: str, kind: str, names: str
) -> None:
    origin = read_checkpoint(getattr(releases["b-like"], layout)).origin
    files = origin["files"]
    assert origin["kind"] == kind
    assert isinstance(files, dict)
    assert {name for name in files if not name.startswith("tokenizer.")} == set(names.split())
    assert all(isinstance(digest, str) and len(digest) == 64 for digest in files.values())


def test_a_path_without_exactly_one_model_is_refused(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither config.json .* nor"):
        read_checkpoint(tmp_path / "empty")
    (pair / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="keep one of the two"):
        read_checkpoint(pair)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "args.pkl", "x.CKPT"])
def test_a_folder_with_a_pickle_is_refused(pair: Path, folder: Path, name: str) -> None:
    (pair / name).write_bytes(b"\x80\x04N.")
    for path, dense in ((pair, None), (folder, pair)):
        with pytest.raises(CheckpointError, match="a pickle can run code"):
            read_checkpoint(path, dense=dense)
