"""Reads the installed MiniLM (Apache-2.0) into the encoder's own text network."""

from safetensors.torch import load_file
from tokenizers import Tokenizer

from model.minilm import MiniLm
from training.pretrained.text import package_folder

_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
}


def load_tokenizer() -> Tokenizer:
    """MiniLM's tokenizer, with its begin and end tokens."""
    return Tokenizer.from_file(str(package_folder() / "tokenizer.json"))


def load_minilm(network: MiniLm) -> None:
    """Read the package's weights into a network of full depth."""
    weights = load_file(package_folder() / "model.safetensors")
    state = {"tokens.weight": weights["embeddings.word_embeddings.weight"]}
    positions = weights["embeddings.position_embeddings.weight"][: len(network.positions)]
    state["positions"] = positions + weights["embeddings.token_type_embeddings.weight"][0]
    parts = {"norm": "embeddings.LayerNorm"}
    for number in range(len(network.layers)):
        for name, part in _LAYER.items():
            parts[f"layers.{number}.{name}"] = f"encoder.layer.{number}.{part}"
    for name, part in parts.items():
        for kind in ("weight", "bias"):
            state[f"{name}.{kind}"] = weights[f"{part}.{kind}"]
    network.load_state_dict(state)
