"""CPU time of a training step of a small recipe, on prepared batches."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.batch import Batch
from training.methods.base import Method, model_width
from training.methods.distill import Distill, DistillConfig
from training.methods.image_backbone import TARGET_WIDTH
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import FrozenTeacher
from training.optim import build_optimizers
from training.parallel import ParallelMethod
from training.pretrained.image_backbone import load_image_backbone
from training.run import new_model
from training.targets import Softmax
from training.update import Update, UpdateConfig


def build_update(
    config: TrainingConfig, tokenizer: Tipsv2Tokenizer, batches: Sequence[Batch]
) -> Update:
    """Build the update step of a recipe with random weights; the teacher has the student's size.

    The values of the weights do not affect the cost of a step.

    Args:
        config: Configuration of the run.
        tokenizer: Tokenizer with the model's vocabulary.
        batches: First batches of the run; the axes of the image backbone are fitted to them.
    """
    torch.set_num_threads(1)
    method = _build_method(config, len(tokenizer))
    if config.method.image_backbone.weight > 0:
        with tempfile.TemporaryDirectory() as folder:
            images = _images(batches)
            method.image_backbone = load_image_backbone(Path(folder), images, TARGET_WIDTH)
    method.train()
    parallel = ParallelMethod(
        method, kind="ddp", compile_blocks=config.compile, checkpoint_activations=False
    )
    settings = UpdateConfig(
        optim=config.optim,
        num_steps=config.num_steps,
        precision=config.precision,
        seed=config.seed,
    )
    return Update(settings, parallel, build_optimizers([method], config.optim))


def _build_method(config: TrainingConfig, vocab_size: int) -> Method:
    model = new_model(config, vocab_size)
    if isinstance(config.method, PretrainConfig):
        return Pretrain(model, config.method)
    assert isinstance(config.method, DistillConfig)
    teacher = new_model(config, vocab_size)
    head = config.method.head
    frozen = FrozenTeacher(
        vision_model=teacher.vision_model,
        head=head.build(model_width(teacher)),
        centering=Softmax(temperature=head.teacher_temperature),
    )
    return Distill(model, config.method, frozen)


def _images(batches: Iterable[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch.pixels_B3HW
        if batch.unnamed is not None:
            yield batch.unnamed.pixels_E3hw


def num_images(batch: Batch) -> int:
    """Return the number of images of a batch, scenes and drawings."""
    return sum(map(len, _images([batch])))


def step_cpu_s(update: Update, batches: Sequence[Batch], *, step: int) -> float:
    """CPU seconds of a step per image: the median over batches after the first.

    Args:
        update: Update step to measure.
        batches: At least two batches of equal size.
        step: Step number in the training, which decides the active losses.
    """
    times_s = []
    for batch in batches:
        start_s = time.process_time()
        update([batch], step)
        times_s.append((time.process_time() - start_s) / num_images(batch))
    return sorted(times_s[1:])[len(times_s[1:]) // 2]
