"""What google-deepmind/tips' PyTorch files call the tensors of transformers' Tipsv2Model.

Re-derived from upstream's state dicts (`pytorch/image_encoder.py`, a DINOv2 with one register
token; `pytorch/text_encoder.py`) and transformers' conversion mapping of `tipsv2`. Three linear
layers are fused upstream: query, key and value of both towers, and SwiGLU's gate and value.
"""

import re
from collections.abc import Callable, Iterable

from torch import Tensor

from model.checkpoints.weight_map import Change, Source, as_stored

Renaming = list[tuple[str, str]]

VISION_NAMES: Renaming = [
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
]
VISION_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    ".attention.": (".attn.qkv", ("q_proj", "k_proj", "v_proj")),
    ".mlp.": (".mlp.w12", ("gate_proj", "up_proj")),
}
TEXT_NAMES: Renaming = [
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
TEXT_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    ".self_attn.": (".attn.in_proj", ("q_proj", "k_proj", "v_proj")),
}


def vision_sources(names: Iterable[str], prefix: str) -> dict[str, Source]:
    """Sources of the vision tower's tensors.

    Args:
        names: Of a Tipsv2VisionModel's state.
        prefix: What the results' keys get before them.
    """
    return {prefix + name: _source(name, VISION_NAMES, VISION_FUSED) for name in names}


def text_sources(names: Iterable[str], prefix: str) -> dict[str, Source]:
    """Sources of the text tower's tensors; arguments as for `vision_sources`."""
    sources = {prefix + name: _source(name, TEXT_NAMES, TEXT_FUSED) for name in names}
    # torch's MultiheadAttention writes in_proj_weight, where a linear layer would write .weight.
    return {
        name: Source(source.name.replace(".in_proj.", ".in_proj_"), source.change)
        for name, source in sources.items()
    }


def _source(name: str, names: Renaming, fused: dict[str, tuple[str, tuple[str, ...]]]) -> Source:
    change: Change = as_stored
    for infix, (together, parts) in fused.items():
        for index, part in enumerate(parts):
            if f"{infix}{part}." in name:
                name = name.replace(f"{infix}{part}.", f"{together}.")
                change = _chunk(index, len(parts))
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return Source(name, change)


def _chunk(index: int, num_chunks: int) -> Callable[[Tensor], Tensor]:
    def take(tensor: Tensor) -> Tensor:
        return tensor.chunk(num_chunks, dim=0)[index]

    return take
