"""Write small transformers models as the official files.

Written from upstream's modules (DINOv2 blocks with one register token; CLIP-like text blocks) and
not from the reader, so that tests find a mistake in either.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Tipsv2Config, Tipsv2Model

Arrays = dict[str, NDArray[np.float32]]
Tensors = dict[str, Tensor]

TEXT_LAYERS = {"b-like": 3, "g-like": 3, "so-like": 27}
SHAPES: dict[str, dict[str, Any]] = {
    "b-like": {"hidden_size": 128, "num_attention_heads": 2, "mlp_ratio": 4},
    "g-like": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "mlp_ratio": 4,
        "use_swiglu_ffn": True,
    },
    # 538 / 144 is no integer, as 4304 / 1152 is none, and heads are 72 wide.
    "so-like": {"hidden_size": 144, "num_attention_heads": 2, "mlp_ratio": 538 / 144},
}
TEXT_MLPS = {"b-like": 512, "g-like": 512, "so-like": 538}


def small_model(
    like: str, *, vocab_size: int, layers: int = 4, text_layers: int = 0
) -> Tipsv2Model:
    """A random model whose norms, biases and gammas are no longer ones and zeros."""
    shape = SHAPES[like]
    config = Tipsv2Config(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": shape["hidden_size"],
            "num_attention_heads": shape["num_attention_heads"],
            "num_hidden_layers": text_layers or TEXT_LAYERS[like],
            "intermediate_size": TEXT_MLPS[like],
        },
        vision_config={**shape, "num_hidden_layers": layers, "image_size": 56},
        temperature_init_value=0.0125,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Tipsv2Model(config)
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    return model


def vision_tensors(model: Tipsv2Model) -> Tensors:
    """The vision tower as `pytorch/image_encoder.py` names it."""
    tower: Any = model.vision_model
    embeddings = tower.embeddings
    arrays = {
        "cls_token": embeddings.cls_token,
        "pos_embed": embeddings.position_embeddings,
        "register_tokens": embeddings.register_tokens,
        "mask_token": embeddings.mask_token,
        **layer("patch_embed.proj", embeddings.patch_embeddings.projection),
        **layer("norm", tower.layernorm),
    }
    for index, block in enumerate(tower.encoder.layer):
        attention, mlp, to = block.attention, block.mlp, f"blocks.{index}"
        arrays |= layer(f"{to}.norm1", block.norm1) | layer(f"{to}.norm2", block.norm2)
        arrays |= fused(f"{to}.attn.qkv.", attention.q_proj, attention.k_proj, attention.v_proj)
        arrays |= layer(f"{to}.attn.proj", attention.o_proj)
        arrays[f"{to}.ls1.gamma"] = block.layer_scale1.lambda1
        arrays[f"{to}.ls2.gamma"] = block.layer_scale2.lambda1
        if hasattr(mlp, "gate_proj"):
            arrays |= fused(f"{to}.mlp.w12.", mlp.gate_proj, mlp.up_proj)
            arrays |= layer(f"{to}.mlp.w3", mlp.down_proj)
        else:
            arrays |= layer(f"{to}.mlp.fc1", mlp.fc1) | layer(f"{to}.mlp.fc2", mlp.fc2)
    return arrays


def text_tensors(model: Tipsv2Model) -> Tensors:
    """The text tower as `pytorch/text_encoder.py` names it, and the temperature."""
    tower = model.text_model
    arrays = {
        "temperature": model.temperature,
        "token_embedding.weight": tower.embeddings.token_embedding.weight,
        **layer("ln_final", tower.final_layer_norm),
    }
    for index, block in enumerate(tower.encoder.layers):
        attention, to = block.self_attn, f"transformer.resblocks.{index}"
        arrays |= layer(f"{to}.ln_1", block.layer_norm1) | layer(f"{to}.ln_2", block.layer_norm2)
        arrays |= fused(f"{to}.attn.in_proj_", attention.q_proj, attention.k_proj, attention.v_proj)
        arrays |= layer(f"{to}.attn.out_proj", attention.out_proj)
        arrays |= layer(f"{to}.mlp.c_fc", block.mlp.fc1) | layer(f"{to}.mlp.c_proj", block.mlp.fc2)
    return arrays


def vision_arrays(model: Tipsv2Model) -> Arrays:
    """The arrays of the vision file."""
    return {name: array(tensor) for name, tensor in vision_tensors(model).items()}


def text_arrays(model: Tipsv2Model) -> Arrays:
    """The arrays of the text file."""
    return {name: array(tensor) for name, tensor in text_tensors(model).items()}


def write_pair(model: Tipsv2Model, folder: Path, *, name: str = "tips_v2_oss_small") -> None:
    """Write both files as np.savez does."""
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / f"{name}_vision.npz", vision_arrays(model))
    write_npz(folder / f"{name}_text.npz", text_arrays(model))


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an uncompressed npz."""
    np.savez(path, allow_pickle=False, **arrays)


def array(tensor: Tensor) -> NDArray[np.float32]:
    """A copy of a tensor."""
    copied: NDArray[np.float32] = tensor.detach().numpy().copy()
    return copied


def layer(to: str, module: nn.Module) -> Tensors:
    """Weight and bias under their own names."""
    return {f"{to}.{name}": parameter for name, parameter in module.named_parameters()}


def fused(to: str, *modules: nn.Module) -> Tensors:
    """Joined weights and biases of several layers."""
    parts = [layer("x", module) for module in modules]
    return {
        f"{to}{name}": torch.cat([part[f"x.{name}"] for part in parts])
        for name in ("weight", "bias")
    }
