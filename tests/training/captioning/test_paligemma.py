"""A real processor and a real, tiny PaliGemma caption images."""

from dataclasses import replace
from functools import cache
from io import BytesIO
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

NOTE = Path("unused")


@cache
def load(checkpoint: Path, **settings: Any) -> PaliGemmaCaptioner:
    chosen = {"max_tokens": 12, "batch_size": 2, "device": "cpu", **settings}
    return PaliGemmaCaptioner.load(PaliGemmaConfig(model=str(checkpoint), **chosen))


def captions(outcomes: list[list[Outcome]]) -> dict[str, str | None]:
    return {outcome.key: outcome.caption for batch in outcomes for outcome in batch}


def test_the_answer_is_what_the_model_itself_generates(checkpoint: Path) -> None:
    [sample] = make_samples(0, 1)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    image = Image.open(BytesIO(sample.image))
    inputs = processor(images=[image], text=["<image>describe en"]).convert_to_tensors("pt")
    inputs.pop("labels")
    tokens_1T = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = processor.decode(
        tokens_1T[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    outcomes = list(load(checkpoint, prompt="describe en").start([sample], NOTE))
    assert captions(outcomes) == {"k000": expected}


def test_a_batch_equals_its_images_one_by_one(checkpoint: Path) -> None:
    samples = make_samples(0, 4)
    together = captions(list(load(checkpoint, batch_size=4).start(samples, NOTE)))
    alone = captions(list(load(checkpoint, batch_size=1).start(samples, NOTE)))
    assert together == alone


def test_a_broken_image_fails_alone(checkpoint: Path) -> None:
    first, second, third = make_samples(0, 3)
    broken = replace(second, image=second.image[:40])
    outcomes = list(load(checkpoint, batch_size=3).start([first, broken, third], NOTE))
    found = {outcome.key: outcome for batch in outcomes for outcome in batch}
    assert str(found["k001"].failure).startswith("the image: ")
    assert found["k000"].caption
    assert found["k002"].caption
    assert captions(list(load(checkpoint).start([broken], NOTE))) == {"k001": None}


def test_draws_depend_on_the_seed_and_the_batch_alone(checkpoint: Path) -> None:
    def draw(samples: list[Sample], **settings: Any) -> dict[str, str | None]:
        return captions(list(load(checkpoint, temperature=1.0, **settings).start(samples, NOTE)))

    samples = make_samples(0, 4)
    drawn = draw(samples)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    assert draw(samples) == drawn
    assert torch.equal(torch.rand(3), expected)  # torch's own random state is left as it was
    assert draw(samples[2:]) == {key: drawn[key] for key in ("k002", "k003")}
    assert draw(samples, seed=1) != drawn


def test_a_chat_template_is_used_where_the_model_has_one(checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<image>{% else %}{{ c.text }} please{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    plain = load(checkpoint, prompt="caption en please")
    chatty = PaliGemmaCaptioner(
        PaliGemmaConfig(prompt="caption en", max_tokens=12, batch_size=2), plain.model, processor
    )
    samples = make_samples(0, 2)
    assert list(chatty.start(samples, NOTE)) == list(plain.start(samples, NOTE))


def test_bfloat16_runs(checkpoint: Path) -> None:
    captioner = load(checkpoint, precision="bfloat16")
    assert captioner.model.dtype == torch.bfloat16
    assert captioner.settings()["dtype"] == "bfloat16"
    assert all(captions(list(captioner.start(make_samples(0, 3), NOTE))).values())


def test_too_little_memory_stops_the_job_with_advice(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = load(checkpoint)

    def generate(**inputs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(captioner.model, "generate", generate)
    with pytest.raises(ValueError, match="--batch-size"):
        list(captioner.start(make_samples(0, 2), NOTE))


def test_a_missing_checkpoint_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--model"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -1.0}, "temperature"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        PaliGemmaConfig(**settings)
