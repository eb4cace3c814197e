"""A real PaliGemma of two narrow towers and its processor, with random weights, in a folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)


def write_paligemma(folder: Path) -> Path:
    """Write it as transformers does; gives the folder back."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
    words = Tokenizer(
        BPE(vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[])
    )
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = SiglipImageProcessor(size={"height": 28, "width": 28}, image_seq_length=4)
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    towers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    seen = {"image_size": 28, "patch_size": 14, "vision_use_head": False}
    spoken = {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer)}
    tokens: dict[str, Any] = {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **towers, **seen},
        text_config={"model_type": "gemma", **towers, **spoken, "initializer_range": 0.5},
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
        **tokens,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = PaliGemmaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
