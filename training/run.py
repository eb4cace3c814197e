"""Builds and runs a training run: inputs, tokenizer, model, method, validation, trainer."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.runtime.machine import this_hardware
from training import distributed
from training.checkpoint import checkpoint_step, save_atomically
from training.config import DataConfig, TrainingConfig, ViewsConfig
from training.data.batch import Batch, RunShare, with_unit_pixels
from training.inputs.base import Inputs
from training.inputs.images import ImageInputs
from training.inputs.scenes import SceneInputs
from training.inputs.views import ViewInputs
from training.methods.base import Method
from training.methods.captioned import CaptionedMethod
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain
from training.methods.space import SpaceConfig, SpaceDistill
from training.methods.teacher import MODEL_FOLDER, load_teacher
from training.methods.terms import TARGET_WIDTH
from training.observation import Observation, save_model
from training.pretrained.image_backbone import load_image_backbone
from training.pretrained.text import warm_up_text_tower
from training.run_record import RECORD_FILE, read_configs, record_end, record_start
from training.run_store import RunStore
from training.settings import apply_overrides
from training.start import load_heads, load_start
from training.tokenizer import find_tokenizer, train_tokenizer
from training.trainer import BatchSource, Trainer

_BASIS_BATCHES = 20


def open_inputs(config: TrainingConfig) -> Inputs:
    """Open the data of a run.

    Raises:
        FileNotFoundError: There is no data; the message says how to get it.
        ValueError: The data does not fit the losses.
    """
    if isinstance(config.data, DataConfig):
        return SceneInputs(config, config.data)
    if isinstance(config.data, ViewsConfig):
        return ViewInputs(config, config.data)
    return ImageInputs(config, config.data)


def _warm_up(
    config: TrainingConfig, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, inputs: Inputs
) -> None:
    """Warm up a text tower once per run; the result is kept in the run's folder."""
    path = config.folder / "text-tower.pt"
    if not path.exists():
        cosine = warm_up_text_tower(
            model,
            tokenizer,
            inputs.warm_up_texts(),
            num_steps=config.text_warmup_steps,
            seed=config.seed,
        )
        print(json.dumps({"text_warmup_cosine": round(cosine, 4)}), flush=True)
        save_atomically(model.text_model.state_dict(), path)
    model.text_model.load_state_dict(torch.load(path, weights_only=True))


def build_tokenizer(config: TrainingConfig, inputs: Inputs) -> Tipsv2Tokenizer:
    """Load the tokenizer of the run, its start or its teacher, or train one; save it in the run."""
    sources = (config.folder, config.start, config.teacher)
    known = next((found for path in sources if path and (found := find_tokenizer(path))), None)
    if known is not None:
        tokenizer: Tipsv2Tokenizer = Tipsv2Tokenizer.from_pretrained(known)
    else:
        tokenizer = train_tokenizer(inputs.tokenizer_texts(), config.model.vocab_size)
    kept = config.folder / "tokenizer"
    if known != kept:  # otherwise the other ranks may be reading it
        tokenizer.save_pretrained(kept)
    return tokenizer


def new_model(config: TrainingConfig, vocab_size: int) -> Tipsv2Model:
    """A randomly initialised model whose patch embedding expects [0, 1] pixels.

    The initial bias of the patch embedding maps mid-gray to zero. That is the same as centring the
    pixels, but needs no normalisation, which the released models do not have.
    """
    torch.manual_seed(config.seed)
    model = Tipsv2Model(config.model.build(vocab_size))
    # On a CPU, plain matrix products are 1.6 times as fast as the fused kernel for so few tokens.
    # On a GPU, images have a thousand patches, and the scores of plain attention take too much
    # memory.
    model.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")
    projection = model.vision_model.embeddings.patch_embeddings.projection
    with torch.no_grad():
        projection.weight.mul_(4.0)
        projection.bias.copy_(-0.5 * projection.weight.sum(dim=(1, 2, 3)))
    return model


def build_method(config: TrainingConfig, vocab_size: int) -> Method:
    """Build the model and its method, from the start if there is one.

    Args:
        config: The run.
        vocab_size: Of its tokenizer.
    """
    model = new_model(config, vocab_size)
    if config.start is None:
        return _new_method(config, model)
    load_start(model, config.start)
    method = _new_method(config, model)
    parts = load_heads(method, config.start)
    if distributed.is_first_rank():
        print(f"starts from {config.start}: {', '.join(('model', *parts))}", flush=True)
    return method


def _new_method(config: TrainingConfig, model: Tipsv2Model) -> Method:
    if isinstance(config.method, SpaceConfig):
        return SpaceDistill(model, config.method)
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        head, dtype = config.method.head, config.method.teacher_dtype
        return Distill(model, config.method, load_teacher(config.teacher, head, dtype=dtype))
    return Pretrain(model, config.method)


def _has_bfloat16() -> bool:
    """Whether this machine computes in bfloat16 faster than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return "bf16" in this_hardware().cpu_features


def _settle(config: TrainingConfig) -> TrainingConfig:
    """Replace "auto" by the values of the run's record, or by those for this hardware.

    A run that continues on another machine so keeps its numbers, and its optimizer's state fits.
    """
    given = {"precision": config.precision, "optim.optimizer": config.optim.optimizer}
    if "auto" not in given.values():
        return config
    precision, optimizer, reason = "float32", "adamw", "no bfloat16 in this hardware"
    if (config.folder / RECORD_FILE).exists():
        last: Any = read_configs(config.folder)[-1]
        precision, optimizer = last["precision"], last["optim"]["optimizer"]
        reason = "as the run began"
    elif _has_bfloat16():
        precision, optimizer, reason = "bfloat16", "muon", "bfloat16 in this hardware"
    values = {"precision": precision, "optim.optimizer": optimizer}
    chosen = [f"{name}={value}" for name, value in values.items() if given[name] == "auto"]
    if distributed.is_first_rank():
        print(f"{', '.join(chosen)}: {reason}", flush=True)
    return apply_overrides(config, chosen)


def _prepare(
    config: TrainingConfig, inputs: Inputs, share: RunShare
) -> tuple[Method, Tipsv2Tokenizer, BatchSource]:
    """Build method, tokenizer and batches; expensive files are made once per run."""
    tokenizer = build_tokenizer(config, inputs)
    method = build_method(config, len(tokenizer))
    if config.text_warmup_steps and checkpoint_step(config.folder) == 0:
        _warm_up(config, method.model, tokenizer, inputs)
    batches = inputs.batches(tokenizer, share)
    if isinstance(method, CaptionedMethod) and method.config.image_backbone.weight > 0:
        images = _images(batches.loader(0, num_workers=0))
        method.image_backbone = load_image_backbone(config.folder, images, TARGET_WIDTH)
    return method, tokenizer, batches


def _images(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Images [B, 3, H, W], and unnamed drawings, of a run's first batches."""
    for batch in map(with_unit_pixels, islice(batches, _BASIS_BATCHES)):
        yield batch.pixels_B3HW
        if batch.unnamed is not None:
            yield batch.unnamed.pixels_E3hw


def run(config: TrainingConfig) -> Path:
    """Train, and save the model in the run's folder; resumes an unfinished run."""
    torch.set_num_threads(config.threads)
    rank, num_ranks = distributed.start()
    try:
        return _train(config, rank, num_ranks)
    finally:
        distributed.stop()


def _train(config: TrainingConfig, rank: int, num_ranks: int) -> Path:
    part = RunShare(
        batch_size=config.batch_size,
        num_steps=config.num_steps * config.accumulate,
        rank=rank,
        num_ranks=num_ranks,
    )
    with distributed.first_rank_first():
        config.folder.mkdir(parents=True, exist_ok=True)
        if config.checkpoint_store is not None and rank == 0:
            RunStore(config.folder, config.checkpoint_store).fetch()
        config = _settle(config)
        inputs = open_inputs(config)
        if rank == 0:
            print("\n".join(inputs.describe()), flush=True)
        method, tokenizer, batches = _prepare(config, inputs, part)
    done = checkpoint_step(config.folder)
    observation = Observation(config.folder, tokenizer, inputs.benchmarks(), from_step=done)
    with closing(observation):
        trainer = Trainer(
            config,
            method,
            batches,
            validate=lambda step: observation.validate(step, trainer.parallel),
            report=observation.report,
        )
        if rank == 0:
            _record(config, trainer.parallel.device, inputs, from_step=done)
        trainer.train()
        save_model(config.folder, trainer.parallel, tokenizer)
        if rank == 0:
            record_end(config.folder)
        return config.folder / MODEL_FOLDER


def _record(
    config: TrainingConfig, device: torch.device, inputs: Inputs, *, from_step: int
) -> None:
    """Record this start in run.json, and print a summary."""
    num_ranks = distributed.num_ranks()
    print(
        f"{config.name}: steps {from_step} to {config.num_steps}, on {num_ranks} x {device.type}, "
        f"in {config.precision}",
        flush=True,
    )
    record_start(
        config.folder,
        config,
        from_step=from_step,
        device=device,
        num_ranks=num_ranks,
        data=inputs.facts(),
    )
