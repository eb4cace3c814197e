"""The encoder's own networks compute what the packages' networks compute."""

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch.nn import functional as F

from model.cell_encoder import CellConfig, CellText
from training.photographs.encoder import load_minilm, load_tokenizer
from training.pretrained.text import sentence_embeddings
from training.pretrained.weights import EFFICIENTNET, load_trunk, weights_file


@torch.inference_mode()
def test_the_trunk_is_efficientnet_lite0() -> None:
    trunk, weight, bias = load_trunk()
    oracle = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(weights_file(EFFICIENTNET), map_location="cpu", weights_only=True)
    oracle.load_state_dict(weights)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    wanted = oracle.eval().extract_features((pixels * 255 - 127) / 128)
    assert torch.allclose(trunk(pixels), wanted, atol=1e-3)
    assert weight.shape == (1000, 1280)
    assert bias.shape == (1000,)


@torch.inference_mode()
def test_the_text_network_is_minilm() -> None:
    tokenizer = load_tokenizer()
    config = CellConfig(
        drawing_width=2,
        class_width=2,
        num_drawing_names=1,
        num_class_names=1,
        vocabulary=tokenizer.get_vocab_size(),
    )
    network = CellText(config).eval().sentence
    load_minilm(network)
    tokenizer.no_padding()
    for text in ("loudspeaker", "a photo of a red apple on a table"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        cosine = F.cosine_similarity(
            network(ids, torch.ones_like(ids)), sentence_embeddings([text])
        )
        assert float(cosine) > 0.99999
