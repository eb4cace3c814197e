"""A -dpt folder's heads are taken, its backbone only if it is the model's vision tower."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Tipsv2DptForDensePrediction,
    Tipsv2DptForDepthEstimation,
    Tipsv2DptForNormalEstimation,
    Tipsv2DptForSemanticSegmentation,
    Tipsv2Model,
)

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.dense_folder import read_dense_folder
from model.checkpoints.read import read_checkpoint
from model.graphs import DENSE_TASKS, DenseTask
from tests.model.checkpoints.hub_layout import hub_tensors
from tests.model.checkpoints.official_layout import small_model
from tests.model.checkpoints.scenic_layout import dense_model

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

SINGLE: dict[DenseTask, type[PreTrainedModel]] = {
    "depth": Tipsv2DptForDepthEstimation,
    "normals": Tipsv2DptForNormalEstimation,
    "segmentation": Tipsv2DptForSemanticSegmentation,
}


@pytest.fixture(scope="module")
def model() -> Tipsv2Model:
    return small_model("b-like", vocab_size=8, text_layers=1)


@pytest.fixture(scope="module")
def dense(model: Tipsv2Model) -> Tipsv2DptForDensePrediction:
    return dense_model(model)


@pytest.fixture(scope="module")
def saved(dense: Tipsv2DptForDensePrediction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpt")
    dense.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder with three heads, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "dpt"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    backbone = config["backbone_config"] | changes.pop("backbone", {})
    path.write_text(json.dumps(config | {"backbone_config": backbone} | changes), encoding="utf-8")


def same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("like", ["b-like", "g-like", "so-like"])
def test_three_heads_arrive_whole(
    releases: dict[str, "Release"], tmp_path: Path, like: str
) -> None:
    original = dense_model(releases[like].model)
    original.save_pretrained(tmp_path)
    for path in (releases[like].pair, releases[like].folder):
        checkpoint = read_checkpoint(path, dense=tmp_path)
        assert checkpoint.dense is not None
        assert checkpoint.dense_tasks == DENSE_TASKS
        same_state(checkpoint.dense.state_dict(), original.state_dict())
        backbone = dict(checkpoint.dense.backbone.named_parameters())
        for name, parameter in checkpoint.model.vision_model.named_parameters():
            assert backbone[name].data_ptr() == parameter.data_ptr(), name
        pixels_B3HW = torch.rand(1, 3, 56, 84, generator=torch.Generator().manual_seed(0))
        actual, expected = checkpoint.dense(pixels_B3HW), original(pixels_B3HW)
        for output in ("predicted_depth", "normals", "segmentation_logits"):
            torch.testing.assert_close(actual[output], expected[output], rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_a_single_head_arrives_whole(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path, task: DenseTask
) -> None:
    single = SINGLE[task](dense.config)
    weights = {
        name.removeprefix(f"{task}_"): tensor
        for name, tensor in dense.state_dict().items()
        if name.startswith((f"{task}_", "backbone."))
    }
    single.load_state_dict(weights)
    single.save_pretrained(tmp_path)
    found = read_dense_folder(tmp_path, model)
    assert found.tasks == (task,)
    expected = {
        name: tensor
        for name, tensor in dense.state_dict().items()
        if name.startswith((f"{task}_", "backbone."))
    }
    same_state(found.model.state_dict(), expected)


@pytest.mark.parametrize("kind", [Tipsv2DptForDensePrediction, *SINGLE.values()])
def test_the_hubs_first_names_are_known(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, folder: Path, kind: type
) -> None:
    """One file of three heads, whichever of the classes the configuration names."""
    save_file(hub_tensors(dense), folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, architectures=[kind.__name__])
    found = read_dense_folder(folder, model)
    assert len(found.tasks) == (3 if kind is Tipsv2DptForDensePrediction else 1)
    expected = {
        name: tensor
        for name, tensor in dense.state_dict().items()
        if name.startswith(("backbone.", *(f"{task}_" for task in found.tasks)))
    }
    same_state(found.model.state_dict(), expected)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_the_folder_says_what_follows_the_depth_heads_convolution(
    model: Tipsv2Model, folder: Path, activation: str
) -> None:
    change_config(folder, depth_decoder_activation=activation)
    found = read_dense_folder(folder, model)
    assert found.model.config.depth_decoder_activation == activation
    assert found.origin["depth_activation"] == activation
    assert found.origin["depth_activation_from"] == "config.json"


@pytest.mark.parametrize(
    "name",
    [
        "backbone.embeddings.register_tokens",
        "backbone.encoder.layer.3.mlp.fc1.bias",
        "backbone.layernorm.weight",
    ],
)
def test_a_backbone_that_is_another_tower_is_refused(
    model: Tipsv2Model, dense: Tipsv2DptForDensePrediction, tmp_path: Path, name: str
) -> None:
    other = dense_model(model)
    with torch.no_grad():
        other.get_parameter(name).add_(0.25)
    other.save_pretrained(tmp_path)
    short = name.removeprefix("backbone.")
    with pytest.raises(
        CheckpointError, match=rf"not the model's vision tower: '{short}' differs \(by up to 0\.25"
    ):
        read_dense_folder(tmp_path, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dpt"}, "of type 'dpt', not 'tipsv2_dpt'"),
        ({"architectures": ["DPTForDepthEstimation"]}, "dense heads are one of"),
        ({"backbone": {"num_attention_heads": 4}}, "with num_attention_heads 4, and the .* is 2"),
        ({"backbone": {"layer_norm_eps": 1e-5}}, "with layer_norm_eps 1e-05"),
        ({"backbone": {"apply_layernorm": False}}, "without apply_layernorm"),
        ({"backbone": {"reshape_hidden_states": True}}, "reshape_hidden_states"),
        (
            {"backbone": {"out_indices": [2, 3, 4], "out_features": None}},
            "takes 3 layers for 4 stages",
        ),
        ({"num_depth_bins": 13}, "of other shapes than its config.json says"),
        ({"fusion_hidden_size": "wide"}, "no configuration that transformers takes"),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_refused(
    model: Tipsv2Model, folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_dense_folder(folder, model)


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_of_the_hub_is_not_fetched(model: Tipsv2Model, folder: Path, name: str) -> None:
    kernel = {name: "somebody/their-attention"}
    change_config(folder, backbone=kernel, **kernel)
    backbone = read_dense_folder(folder, model).model.backbone
    assert backbone.config._attn_implementation == "sdpa"


def test_another_kind_of_backbone_is_refused(model: Tipsv2Model, folder: Path) -> None:
    change_config(folder, backbone_config={"model_type": "resnet"})
    with pytest.raises(CheckpointError, match="a backbone that is no TIPSv2 vision tower"):
        read_dense_folder(folder, model)


def test_heads_for_another_variant_are_refused(folder: Path) -> None:
    other = small_model("so-like", vocab_size=8, text_layers=1)
    with pytest.raises(CheckpointError, match="with hidden_size 128, and the model's is 144"):
        read_dense_folder(folder, other)


def test_a_missing_head_is_refused(model: Tipsv2Model, folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: t for name, t in load_file(path).items() if not name.startswith("normals")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 'normals_.* no whole Tipsv2DptForDense"):
        read_dense_folder(folder, model)


def test_values_that_are_no_numbers_are_refused(model: Tipsv2Model, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    # transformers saves under names of its own choice, of which this is one.
    name = next(name for name in weights if "normals" in name and name.endswith("head.bias"))
    weights[name] /= 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite .* 'normals_decoder\.head\.bias"):
        read_dense_folder(folder, model)


def test_a_model_is_no_heads_and_heads_are_no_model(
    releases: dict[str, "Release"], folder: Path
) -> None:
    release = releases["b-like"]
    with pytest.raises(CheckpointError, match="of type 'tipsv2', not 'tipsv2_dpt'"):
        read_checkpoint(release.pair, dense=release.folder)
    with pytest.raises(CheckpointError, match="of type 'tipsv2_dpt', not 'tipsv2'"):
        read_checkpoint(folder)
