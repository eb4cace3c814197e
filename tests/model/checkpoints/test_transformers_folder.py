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
from tests.model.checkpoints.official_layout import text_arrays, vision_arrays

if TYPE_CHECKING:
    from tests.model.checkpoints.conftest import Release

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
Change = Callable[[Path], object]


def save(weights: dict[str, Tensor], folder: Path) -> None:
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def configured(**changes: Any) -> Change:
    """Changes entries of the configuration."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for name, value in changes.items():
            config[name] = config[name] | value if isinstance(config.get(name), dict) else value
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")

    return change


def with_tensor(name: str | None, change: Callable[[Tensor], Tensor | None]) -> Change:
    """Changes a tensor, or removes it; None is some weight of the vision tower."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        # transformers saves under names of its own choice.
        key = name or max(weights)
        changed = change(weights.pop(key, torch.zeros(())))
        save(weights if changed is None else weights | {key: changed}, folder)

    return damage


def indexed(index: str) -> Change:
    """Replaces the weights by an index of shards."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
        (folder / INDEX).write_text(index, encoding="utf-8")

    return change


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_tensor(None, lambda _: None), "lacks 'vision_model"),
        (with_tensor(None, lambda t: t[..., :-1].contiguous()), "other shapes"),
        (with_tensor(None, lambda t: t / 0), "NaN or infinite values in 'vision_model"),
        (with_tensor(None, lambda t: t.to(torch.int8)), "I8 at .* quantised weights"),
        (with_tensor(None, lambda t: t.to(torch.float8_e4m3fn)), "quantised weights"),
        (with_tensor("head.weight", lambda _: torch.ones(2)), r"unknown tensors: 'head\.weight'"),
        (with_tensor("temperature", lambda _: torch.tensor(0.0)), "temperature"),
        (with_tensor("temperature", lambda _: torch.tensor(float("nan"))), "temperature"),
        (truncated, r"model\.safetensors is not a safetensors file"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is not a safetensors file"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"has neither model\.safetensors nor"),
        *(
            (indexed(json.dumps({"weight_map": {"a": name}})), "which is not a file of the folder")
            for name in ("../model.safetensors", "/etc/passwd", "a\\b.safetensors", "..")
        ),
        *((indexed(text), r"index\.json") for text in ("{}", '{"weight_map": []}', "[]", "{")),
        *(
            (lambda folder, text=text: (folder / CONFIG).write_text(text), r"config\.json")
            for text in ("", "[]", "{}", '{"model_type": 3}')
        ),
        (configured(temperature_init_value=-1), "not valid for transformers"),
        (configured(model_type="siglip"), "of type 'siglip'"),
        (configured(quantization_config={"quant_method": "bitsandbytes"}), "float weights"),
        (configured(vision_config={"num_register_tokens": 4}), "has 4 register tokens"),
    ],
)
def test_a_wrong_folder_is_refused(folder: Path, damage: Change, message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_half_precision_weights_without_metadata_become_float32(
    releases: dict[str, "Release"], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / WEIGHTS)
    found = read_checkpoint(folder).model.state_dict()
    for name, tensor in releases["b-like"].model.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.bfloat16().float()), name
    assert capfd.readouterr() == ("", "")


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


def test_code_and_kernels_that_a_folder_names_are_not_used(folder: Path) -> None:
    # The first releases had an `auto_map`.
    configured(auto_map={"AutoModel": "modeling.Evil"}, attn_implementation="a/kernel")(folder)
    configured(_attn_implementation="a/kernel")(folder)
    marker = folder / "was-run"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    assert read_checkpoint(folder).model.config._attn_implementation == "sdpa"
    assert not marker.exists()


@pytest.mark.parametrize("like", ["b-like", "g-like"])
def test_the_hubs_first_names_are_known(
    releases: dict[str, "Release"], folder: Path, like: str
) -> None:
    """Published folders have upstream's names after the towers', and no temperature."""
    model = releases[like].model
    arrays = {f"vision_encoder.{name}": array for name, array in vision_arrays(model).items()}
    arrays |= {f"text_encoder.{name}": array for name, array in text_arrays(model).items()}
    del arrays["text_encoder.temperature"]
    (folder / CONFIG).write_bytes((releases[like].folder / CONFIG).read_bytes())
    save({name: torch.from_numpy(array) for name, array in arrays.items()}, folder)
    found = read_checkpoint(folder).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
