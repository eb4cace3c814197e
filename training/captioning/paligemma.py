"""Captions images with PaliGemma, or any other image-text-to-text model of transformers.

Shapes: B images, L prompt tokens, T prompt and answer tokens, H W pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.captioning.job import Outcome, Outcomes
from training.data.shards.sample import BadSample, Sample, decode_tensor
from training.parallel import choose_device
from training.settings import STRICT


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PaliGemmaConfig:
    """Model, prompt and generation options. Answers are greedy, as PaliGemma's own are scored.

    Attributes:
        model: Folder or hub name of a checkpoint with its processor. TIPSv2 names PaliGemma but no
            checkpoint; the mix checkpoint is the released one that answers prompts without further
            training, and 224 pixels is the smallest and cheapest.
        prompt: The prompt. Not published; PaliGemma was trained to answer "caption en" with a short
            English caption. A model with a chat template gets it as the user's message after the
            image.
        max_tokens: Longest answer. Not published; TIPSv2 reads 64 tokens of a caption.
        batch_size: Images per batch. Results may differ in the last bits between batch sizes, and
            so in rare words; a job therefore keeps one batch size.
        source: Caption source under which the captions are stored.
    """

    model: str = "google/paligemma-3b-mix-224"
    prompt: str = "caption en"
    max_tokens: PositiveInt = 64
    batch_size: PositiveInt = 16
    source: str = "paligemma"


class PaliGemmaCaptioner:
    """An image-text-to-text model with its processor: on a GPU, in bfloat16, if there is one."""

    shards_ahead = 0

    def __init__(
        self,
        config: PaliGemmaConfig,
        model: Any,  # transformers types models too narrowly
        processor: Any,  # and those of different models share no typed interface
    ) -> None:
        self.source = config.source
        self._config = config
        self.model = model
        self._processor = processor
        # Answers are appended on the right, so prompts are padded on the left.
        processor.tokenizer.padding_side = "left"
        self._prompt = _full_prompt(processor, config.prompt)

    @classmethod
    def load(cls, config: PaliGemmaConfig) -> "PaliGemmaCaptioner":
        """Load a checkpoint.

        Raises:
            FileNotFoundError: There is no checkpoint of this name.
        """
        try:
            processor = AutoProcessor.from_pretrained(config.model)
            model = AutoModelForImageTextToText.from_pretrained(
                config.model, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32
            )
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{config.model} cannot be loaded; --model takes the folder of a checkpoint with "
                f"its processor, or a hub name you may download: {error}"
            ) from error
        return cls(config, model.eval().to(choose_device()), processor)

    def settings(self) -> Mapping[str, Any]:
        """Return what the captions depend on."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"kind": "transformers", "dtype": dtype, **asdict(self._config)}

    def start(self, samples: Iterable[Sample], note: Path) -> Outcomes:
        """Caption samples batch by batch; the next one is decoded while the device works.

        Raises:
            ValueError: A batch does not fit into the device's memory.
        """
        remaining = iter(samples)
        with ThreadPoolExecutor(max_workers=1) as pool:

            def decoding() -> Future[tuple[dict[str, Image.Image], list[Outcome]]]:
                return pool.submit(_decoded, list(islice(remaining, self._config.batch_size)))

            following = decoding()
            while any(current := following.result()):
                following = decoding()
                images, broken = current
                answers = self._answer(list(images.values())) if images else []
                captioned = zip(images, answers, strict=True)
                yield [*broken, *(Outcome(key=key, caption=answer) for key, answer in captioned)]

    @torch.inference_mode()
    def _answer(self, images: Sequence[Image.Image]) -> list[str]:
        config, texts = self._config, [self._prompt] * len(images)
        inputs = self._processor(images=images, text=texts, padding=True).convert_to_tensors("pt")
        inputs.pop("labels", None)  # PaliGemma's processor makes them for training
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        try:
            tokens_BT = self.model.generate(
                **inputs, max_new_tokens=config.max_tokens, do_sample=False
            )
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"a batch of {config.batch_size} images does not fit into the device's memory: "
                f"choose a smaller --batch-size and another --output ({error})"
            ) from error
        answers_BT = tokens_BT[:, inputs["input_ids"].shape[1] :]
        answers: list[str] = self._processor.batch_decode(answers_BT, skip_special_tokens=True)
        return answers


def _decoded(samples: Sequence[Sample]) -> tuple[dict[str, Image.Image], list[Outcome]]:
    """Images by key, and the outcomes of broken ones."""
    images, broken = dict[str, Image.Image](), list[Outcome]()
    for sample in samples:
        try:
            pixels_3HW = decode_tensor(sample.image)
        except BadSample as error:
            broken.append(Outcome(key=sample.key, failure=f"the image: {error}"))
        else:
            images[sample.key] = Image.fromarray(pixels_3HW.permute(1, 2, 0).numpy())
    return images, broken


def _full_prompt(processor: Any, prompt: str) -> str:
    """Put the image before the prompt, in the form that this model was trained with."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        message = {"role": "user", "content": content}
        return str(processor.apply_chat_template([message], add_generation_prompt=True))
    return f"{processor.image_token}{prompt}"
