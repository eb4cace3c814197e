"""Heads of a -dpt folder are read if its backbone is the model's vision tower."""

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Tipsv2Model

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.transformers_folder import read_dense
from model.graphs import DepthActivation
from tests.model.checkpoints.dense_model import dense_model
from tests.model.checkpoints.official_layout import small_model

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release


@pytest.fixture(scope="module")
def model() -> Tipsv2Model:
    return small_model("b-like", vocab_size=8, text_layers=1)


@pytest.fixture(scope="module")
def saved(model: Tipsv2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpt")
    dense_model(model).save_pretrained(folder)
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


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("like", ["b-like", "g-like", "so-like"])
def test_three_heads_are_read(releases: dict[str, "Release"], tmp_path: Path, like: str) -> None:
    original = dense_model(releases[like].model)
    original.save_pretrained(tmp_path)
    for path in (releases[like].pair, releases[like].folder):
        checkpoint = read_checkpoint(path, dense=tmp_path)
        assert checkpoint.dense is not None
        torch.testing.assert_close(
            checkpoint.dense.state_dict(), original.state_dict(), rtol=0, atol=0
        )
        backbone = dict(checkpoint.dense.backbone.named_parameters())
        for name, parameter in checkpoint.model.vision_model.named_parameters():
            assert backbone[name].data_ptr() == parameter.data_ptr(), name


@torch.no_grad()
def test_the_depth_activation_may_differ_from_the_configuration(
    model: Tipsv2Model, folder: Path
) -> None:
    pixels = torch.rand(1, 3, 56, 56)
    depths = {}
    cases: list[tuple[DepthActivation | None, str, str]] = [
        (None, "relu", "config.json"),
        ("relu", "relu", "an option"),
        ("linear", "linear", "an option"),
    ]
    for asked, used, said in cases:
        heads, origin = read_dense(folder, model, asked)
        assert (origin["depth_activation"], origin["depth_activation_from"]) == (used, said)
        depths[asked] = heads(pixels).predicted_depth
    assert torch.equal(depths[None], depths["relu"])
    assert not torch.equal(depths["relu"], depths["linear"])


def test_heads_of_another_backbone_are_refused(model: Tipsv2Model, folder: Path) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.vision_model.layernorm.weight += 0.25
    with pytest.raises(CheckpointError, match=r"vision tower: 'layernorm.weight' differs"):
        read_dense(folder, other)
    with pytest.raises(CheckpointError, match="hidden_size 128"):
        read_dense(folder, small_model("so-like", vocab_size=8, text_layers=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dpt"}, "of type 'dpt', not 'tipsv2_dpt'"),
        ({"architectures": ["Tipsv2DptForDepthEstimation"]}, "all three in one"),
        ({"backbone": {"num_attention_heads": 4}}, "num_attention_heads 4"),
        ({"backbone": {"layer_norm_eps": 1e-5}}, "layer_norm_eps 1e-05"),
        ({"backbone": {"apply_layernorm": False}}, "without apply_layernorm"),
        ({"backbone": {"reshape_hidden_states": True}}, "reshape_hidden_states"),
        ({"backbone_config": {"model_type": "resnet"}}, "no TIPSv2 vision tower"),
        ({"backbone": {"out_indices": [2, 3, 4], "out_features": None}}, "3 layers for 4 stages"),
        ({"num_depth_bins": 13}, "of other shapes"),
        ({"fusion_hidden_size": "wide"}, "not valid for transformers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    model: Tipsv2Model, folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_dense(folder, model)


def test_missing_and_infinite_weights_are_refused(model: Tipsv2Model, folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    # transformers saves under names of its own choice, of which this is one.
    name = next(name for name in weights if "normals" in name and name.endswith("head.bias"))
    weights[name] /= 0
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite .* 'normals_decoder\.head\.bias"):
        read_dense(folder, model)
    weights = {name: t for name, t in weights.items() if not name.startswith("normals")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 'normals_"):
        read_dense(folder, model)


def test_a_model_and_dense_heads_are_not_confused(
    releases: dict[str, "Release"], folder: Path
) -> None:
    release = releases["b-like"]
    with pytest.raises(CheckpointError, match="of type 'tipsv2', not 'tipsv2_dpt'"):
        read_checkpoint(release.pair, dense=release.folder)
    with pytest.raises(CheckpointError, match="of type 'tipsv2_dpt', not 'tipsv2'"):
        read_checkpoint(folder)
