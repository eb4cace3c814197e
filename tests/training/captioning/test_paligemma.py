"""A real processor and a real, tiny PaliGemma caption images."""

from dataclasses import replace
from functools import cache
from io import BytesIO
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.training.captioning.conftest import make_samples
from training.captioning.job import Outcome
from training.captioning.paligemma import PaliGemmaCaptioner, PaliGemmaConfig
from training.data.shards.sample import Sample


@cache
def load(checkpoint: Path, **settings: Any) -> PaliGemmaCaptioner:
    chosen = {"max_tokens": 12, "batch_size": 2, **settings}
    return PaliGemmaCaptioner.load(PaliGemmaConfig(model=str(checkpoint), **chosen))


def outcomes(captioner: PaliGemmaCaptioner, samples: list[Sample]) -> dict[str, Outcome]:
    batches = captioner.start(samples, Path("unused"))
    return {outcome.key: outcome for batch in batches for outcome in batch}


def test_the_answer_is_what_the_model_itself_generates(checkpoint: Path) -> None:
    [sample] = make_samples(0, 1)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    image = Image.open(BytesIO(sample.image))
    inputs = processor(images=[image], text=["<image>describe en"]).convert_to_tensors("pt")
    inputs.pop("labels")
    tokens_1T = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer_T = tokens_1T[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(answer_T, skip_special_tokens=True)
    found = outcomes(load(checkpoint, prompt="describe en"), [sample])
    assert found["k000"].caption == expected


def test_a_batch_equals_its_images_one_by_one_and_a_broken_image_fails_alone(
    checkpoint: Path,
) -> None:
    samples = make_samples(0, 4)
    samples[1] = replace(samples[1], image=samples[1].image[:40])
    together, alone = (outcomes(load(checkpoint, batch_size=n), samples) for n in (4, 1))
    assert together == alone
    assert str(alone["k001"].failure).startswith("the image: ")
    assert [key for key, one in alone.items() if one.caption] == ["k000", "k002", "k003"]


def test_the_next_batch_is_read_while_one_is_captioned(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, waiting = load(checkpoint), iter(make_samples(0, 6))
    left: list[int] = []

    def answer(images: list[Image.Image]) -> list[str]:
        left.append(length_hint(waiting))
        return ["a caption"] * len(images)

    monkeypatch.setattr(captioner, "_answer", answer)
    assert sum(len(batch) for batch in captioner.start(waiting, Path("unused"))) == 6
    assert left == [2, 0, 0]


def test_too_little_memory_and_a_missing_checkpoint_come_with_advice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = load(checkpoint)

    def generate(**inputs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(captioner.model, "generate", generate)
    with pytest.raises(ValueError, match="--batch-size"):
        outcomes(captioner, make_samples(0, 2))
    with pytest.raises(FileNotFoundError, match="--model"):
        load(tmp_path)
