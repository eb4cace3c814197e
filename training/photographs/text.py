"""Reads the installed MiniLM (Apache-2.0) into the encoder's text tower."""

from safetensors.torch import load_file
from tokenizers import Tokenizer

from model.cell_encoder import Sentence
from training.pretrained.text import package_folder

_POSITIONS = "embeddings.position_embeddings.weight"


def load_tokenizer() -> Tokenizer:
    """MiniLM's tokenizer, with its begin and end tokens."""
    return Tokenizer.from_file(str(package_folder() / "tokenizer.json"))


def load_minilm(sentence: Sentence) -> None:
    """Read the package's weights, with as many positions as the tower reads."""
    weights = load_file(package_folder() / "model.safetensors")
    wanted = sentence.network.state_dict()
    weights[_POSITIONS] = weights[_POSITIONS][: len(wanted[_POSITIONS])]
    sentence.network.load_state_dict({name: weights[name] for name in wanted})
