"""A checkpoint read from the official files is the model that the transformers folder holds."""

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

TEXTS = ["A photo of a CAT", "grass", "naïve dog running on the 3rd x-ray 🙂"]
SIZES = [(56, 56), (28, 42), (70, 98), (98, 14)]


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
    # The tensors are the same to the bit, as the next test shows, and so were the outputs wherever
    # this ran; the tolerance is for kernels that choose their order of adding by memory alignment.
    model, from_folder, from_pair = both
    for size_hw in SIZES:
        expected = image_outputs(model, size_hw)
        for checkpoint in (from_folder, from_pair):
            for actual, output in zip(
                image_outputs(checkpoint.model, size_hw), expected, strict=True
            ):
                torch.testing.assert_close(actual, output, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        text_outputs(from_pair), text_outputs(from_folder), rtol=0, atol=1e-5
    )


def test_every_tensor_arrives_bit_for_bit(both: Both) -> None:
    model, *checkpoints = both
    for checkpoint in checkpoints:
        found = checkpoint.model.state_dict()
        assert found.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == torch.float32


def test_buffers_that_no_file_holds_are_there(both: Both) -> None:
    model, *checkpoints = both
    for checkpoint in checkpoints:
        for name, buffer in model.named_buffers():
            assert torch.equal(checkpoint.model.get_buffer(name), buffer), name


def test_models_are_ready_to_evaluate(both: Both) -> None:
    for checkpoint in both[1:]:
        assert not checkpoint.model.training
        assert checkpoint.dense is None
        assert checkpoint.dense_tasks == ()


def test_the_temperature_is_carried(both: Both) -> None:
    for checkpoint in both[1:]:
        assert checkpoint.model.temperature.item() == pytest.approx(0.0125)
        assert checkpoint.model.config.temperature_init_value == pytest.approx(0.0125)


def test_both_tokenizers_give_the_same_ids(both: Both) -> None:
    _, from_folder, from_pair = both
    assert from_folder.tokenizer(TEXTS)["input_ids"] == from_pair.tokenizer(TEXTS)["input_ids"]


def test_other_sizes_are_called_by_width_and_depth(both: Both) -> None:
    model, *checkpoints = both
    width = model.config.get_text_config().hidden_size
    for checkpoint in checkpoints:
        assert checkpoint.variant == f"w{width}d4"


def test_the_origin_tells_kind_and_digests(releases: dict[str, "Release"]) -> None:
    from_pair = read_checkpoint(releases["b-like"].pair).origin
    files = from_pair["files"]
    assert from_pair["kind"] == "official-npz"
    assert isinstance(files, dict)
    assert sorted(files) == [
        "tips_v2_oss_small_text.npz",
        "tips_v2_oss_small_vision.npz",
        "tokenizer.model",
    ]
    assert all(isinstance(digest, str) and len(digest) == 64 for digest in files.values())
    from_folder = read_checkpoint(releases["b-like"].folder).origin
    files = from_folder["files"]
    assert from_folder["kind"] == "transformers"
    assert isinstance(files, dict)
    assert sorted(files) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; name the folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config.json .* nor"):
        read_checkpoint(tmp_path)


def test_two_models_in_one_folder_are_refused(pair: Path) -> None:
    (pair / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="keep one of the two"):
        read_checkpoint(pair)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "args.pkl", "x.CKPT", "y.pth"])
def test_a_pickle_in_the_folder_is_refused(pair: Path, folder: Path, name: str) -> None:
    for where in (pair, folder):
        (where / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(CheckpointError, match=r"a pickle can run code .* safetensors"):
            read_checkpoint(where)
