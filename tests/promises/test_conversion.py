"""A checkpoint becomes a package whose masks are those of the published protocol.

Shapes: K classes, P prompts, D width, N patches, H W pixels.
"""

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.processes.server import photo, start_server, tipserve
from tipserve_client import Client

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Tipsv2Model, Tipsv2Tokenizer

SIDE = 56  # the tiny model's native size; 448 in the notebook
# So many that the random model finds several of them.
CLASSES = [*"abcdefghijklmnopqrstuvwxyz", "cat", "dog", "grass", "sky", "house", "tree", "sea"]
# Windows that end at the border, an upright image, and a size that is no multiple of a patch.
SIZES = [(150, 61), (64, 99), (300, 200)]


@pytest.mark.timeout(600)
def test_a_converted_checkpoint_follows_the_published_protocol(
    tiny_checkpoint: Path,
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    tmp_path: Path,
) -> None:
    import torch  # noqa: PLC0415 - heavy

    from tests.parity.official import class_texts, notebook_mask  # noqa: PLC0415 - heavy

    images = [photo(seed, size, "PNG") for seed, size in enumerate(SIZES)]
    texts = partial(embed_texts, tiny_model, tiny_tokenizer)
    with torch.inference_mode():
        text_KD = class_texts(CLASSES, texts)
        values = partial(value_patches, tiny_model)
        opened = [Image.open(io.BytesIO(image)) for image in images]
        wanted = [notebook_mask(image, text_KD, values, SIDE) for image in opened]
        dog_1D = texts(["dog"])
    assert min(len(np.unique(mask)) for mask in wanted) > 1, "masks of one class prove little"

    cache = tmp_path / "cache"
    flags = ("--runtime=onnx", "--precision=fp32", f"--cache={cache}")
    masks: dict[str, Any] = {}
    model = f"--model=tiny={tiny_checkpoint}"
    with start_server(model, *flags) as server:
        for url in (server.rest, f"grpc://{server.grpc}"):
            with Client(url) as client:
                masks[url] = [found.labels for found in client.segment(images, CLASSES)]
                vectors = client.embed_texts(["dog"], normalize=False)
                np.testing.assert_allclose(vectors, dog_1D, atol=1e-4)
                fast = client.segment(images[0], CLASSES, mode="whole")[0].labels
        # Another process converts.
        assert server.log.read_text().count("exporting the vision graph") == 1
        assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    with start_server(model, *flags) as again, Client(again.rest) as client:
        np.testing.assert_array_equal(client.embed_texts(["dog"], normalize=False), vectors)
        assert "exporting the vision graph" not in again.log.read_text()
    (package,) = (cache / "packages").iterdir()
    file, output = tmp_path / "image.png", tmp_path / "mask.npy"
    file.write_bytes(images[0])
    tipserve("segment", file, f"--classes={','.join(CLASSES)}", f"--model={package}", "-o", output)
    masks["command"] = [np.load(output)]
    for name, found in masks.items():
        for index, mask_HW in enumerate(found):
            assert (mask_HW == wanted[index]).mean() > 0.99, (name, index)
    assert (fast != wanted[0]).mean() > 0.01, "the fast mode is another protocol"


def embed_texts(model: "Tipsv2Model", tokenizer: "Tipsv2Tokenizer", texts: list[str]) -> "Tensor":
    """Embeddings [P, D] by transformers."""
    given = tokenizer([text.lower() for text in texts], padding=True, return_tensors="pt")
    embeddings_PD: Tensor = model.text_model(**given).pooler_output
    return embeddings_PD


def value_patches(model: "Tipsv2Model", window_3HW: "Tensor") -> "Tensor":
    """Value-path patches [N, D]: the last block without its attention weights."""
    tower: Any = model.vision_model
    before_1TD = tower(window_3HW[None], output_hidden_states=True).hidden_states[-2]
    last = tower.encoder.layer[-1]
    value_1TD = last.attention.v_proj(last.norm1(before_1TD))
    values_1TD = before_1TD + last.layer_scale1(last.attention.o_proj(value_1TD))
    values_1TD = values_1TD + last.layer_scale2(last.mlp(last.norm2(values_1TD)))
    patches_ND: Tensor = tower.layernorm(values_1TD)[0, 2:]
    return patches_ND
