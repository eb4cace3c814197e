"""Whole and sharded folders of transformers are read; a wrong tensor or setting is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.transformers_folder import read_model
from tests.model.checkpoints.official_layout import text_arrays, vision_arrays

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Weights = dict[str, Tensor]


def save(weights: Weights, folder: Path) -> None:
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("last_weight", None, r"lacks 'text_model\.|lacks 'vision_model\."),
        ("last_weight", lambda tensor: tensor[..., :-1].contiguous(), "shapes differ from config"),
        ("last_weight", lambda tensor: tensor / 0, "NaN or infinite values in 'vision_model"),
        ("head.weight", lambda _: torch.ones(2), r"unknown tensors: 'head\.weight'"),
        ("temperature", lambda _: torch.tensor(0.0), "temperature"),
        ("temperature", lambda _: torch.tensor(-1.0), "temperature"),
        ("temperature", lambda _: torch.tensor(float("nan")), "temperature"),
    ],
)
def test_a_wrong_tensor_is_refused(
    folder: Path, name: str, change: Callable[[Tensor | None], Tensor] | None, message: str
) -> None:
    weights = load_file(folder / WEIGHTS)
    # transformers saves under names of its own choice; the last is some weight of a tower.
    name = max(weights) if name == "last_weight" else name
    tensor = weights.pop(name, None)
    save(weights if change is None else weights | {name: change(tensor)}, folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_an_absent_temperature_is_read_from_the_configuration(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["temperature"]
    save(weights, folder)
    change_config(folder, temperature_init_value=0.03)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.model.temperature.item() == pytest.approx(0.03)
    assert checkpoint.origin["temperature"] == "of config.json"


def test_half_precision_weights_become_float32(
    releases: dict[str, "Release"], folder: Path
) -> None:
    weights = load_file(folder / WEIGHTS)
    save({name: tensor.bfloat16() for name, tensor in weights.items()}, folder)
    found = read_checkpoint(folder).model.state_dict()
    for name, tensor in releases["b-like"].model.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.bfloat16().float()), name


def test_shards_are_read_and_a_missing_one_is_refused(
    releases: dict[str, "Release"], folder: Path
) -> None:
    model = releases["b-like"].model
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    checkpoint = read_checkpoint(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.model.state_dict()[name], tensor), name
    files = checkpoint.origin["files"]
    assert isinstance(files, dict)
    assert {path.name for path in shards} < files.keys()
    shards[1].unlink()
    with pytest.raises(CheckpointError, match="names 'model-00002"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        *(
            (json.dumps({"weight_map": {"temperature": name}}), "which is not a file of the folder")
            for name in ("../model.safetensors", "/etc/passwd", "a\\b.safetensors", "..")
        ),
        *((index, r"index\.json") for index in ("{}", '{"weight_map": []}', "[]", "{")),
    ],
)
def test_a_wrong_index_is_refused(folder: Path, index: str, message: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / INDEX).write_text(index, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_truncated_and_absent_weights_are_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for length in (0, len(content) - 1):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
            read_checkpoint(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": 3}'])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature_init_value": -1}, "not valid for transformers"),
        ({"model_type": "siglip"}, "of type 'siglip'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "float weights"),
    ],
)
def test_a_config_of_another_model_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    # The first releases had an `auto_map`.
    change_config(folder, auto_map={"AutoModel": "modeling.Evil"})
    marker = folder / "was-run"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    read_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_of_the_hub_is_not_fetched(folder: Path, name: str) -> None:
    change_config(folder, **{name: "somebody/their-attention"})
    assert read_checkpoint(folder).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_a_quantised_type_are_refused(folder: Path, dtype: torch.dtype) -> None:
    weights = load_file(folder / WEIGHTS)
    (name,) = (name for name in weights if name.endswith("token_embedding.weight"))
    save(weights | {name: weights[name].to(dtype)}, folder)
    with pytest.raises(CheckpointError, match=r"token_embedding\.weight'.* quantised weights"):
        read_model(folder)


def test_another_number_of_register_tokens_is_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (name,) = (name for name in weights if name.endswith("register_tokens"))
    save(weights | {name: weights[name].repeat(1, 4, 1)}, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change_config(folder, vision_config=config["vision_config"] | {"num_register_tokens": 4})
    with pytest.raises(CheckpointError, match="has 4 register tokens"):
        read_model(folder)


def test_weights_without_metadata_are_read_and_nothing_is_printed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert read_checkpoint(folder).variant == "w128d4"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("like", ["b-like", "g-like"])
def test_the_hubs_first_names_are_known(
    releases: dict[str, "Release"], folder: Path, like: str
) -> None:
    """Published folders have upstream's names after the towers', and no temperature."""
    release = releases[like]
    weights = {
        f"vision_encoder.{name}": torch.from_numpy(array)
        for name, array in vision_arrays(release.model).items()
    } | {
        f"text_encoder.{name}": torch.from_numpy(array)
        for name, array in text_arrays(release.model).items()
        if name != "temperature"
    }
    (folder / "config.json").write_bytes((release.folder / "config.json").read_bytes())
    save(weights, folder)
    found = read_checkpoint(folder).model.state_dict()
    for name, tensor in release.model.state_dict().items():
        assert torch.equal(found[name], tensor), name
