"""Builds and runs a training run: inputs, tokenizer, model, method, validation, trainer.

Several students of one teacher can share a job: they see the same batches and one pass of the
teacher, and each keeps its own folder.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training import distributed
from training.boards import Boards
from training.checkpoint import checkpoint_step, save_atomically
from training.config import DataConfig, TrainingConfig, ViewsConfig
from training.cost import job_flops, known_device
from training.data.batch import Batch, with_unit_pixels
from training.data.shards.batches import RunShare
from training.inputs.base import Inputs
from training.inputs.images import ImageInputs
from training.inputs.scenes import SceneInputs
from training.inputs.views import ViewInputs
from training.memory import count_state, plan_state
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.image_backbone import TARGET_WIDTH
from training.methods.pretrain import Pretrain
from training.methods.space import SpaceConfig, SpaceDistill
from training.methods.teacher import MODEL_FOLDER, FrozenTeacher, load_teacher
from training.observation import Observation, save_model
from training.pretrained.image_backbone import load_image_backbone
from training.pretrained.text import warm_up_text_tower
from training.run_record import record_end, record_start
from training.run_store import RunStore
from training.start import load_heads, load_start
from training.tokenizer import find_tokenizer, train_tokenizer
from training.trainer import BatchSource, Trainer, train_together

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


def build_method(
    config: TrainingConfig, vocab_size: int, *, teacher: FrozenTeacher | None = None
) -> Method:
    """Build the model and its method, from the start if there is one.

    Args:
        config: The run.
        vocab_size: Of its tokenizer.
        teacher: That of a distillation; None loads it.
    """
    model = new_model(config, vocab_size)
    if config.start is None:
        return _new_method(config, model, teacher)
    load_start(model, config.start)
    method = _new_method(config, model, teacher)
    parts = load_heads(method, config.start)
    if distributed.is_first_rank():
        print(f"starts from {config.start}: {', '.join(('model', *parts))}", flush=True)
    return method


def _new_method(
    config: TrainingConfig, model: Tipsv2Model, teacher: FrozenTeacher | None
) -> Method:
    if isinstance(config.method, SpaceConfig):
        return SpaceDistill(model, config.method)
    if isinstance(config.method, DistillConfig):
        return Distill(model, config.method, teacher or _load_teacher(config))
    return Pretrain(model, config.method)


def _load_teacher(config: TrainingConfig) -> FrozenTeacher:
    assert isinstance(config.method, DistillConfig)
    assert config.teacher is not None  # TrainingConfig checks it
    return load_teacher(config.teacher, config.method.head, dtype=config.method.teacher_dtype)


def _prepare(
    config: TrainingConfig, inputs: Inputs, share: RunShare, teacher: FrozenTeacher | None
) -> tuple[Method, Tipsv2Tokenizer, BatchSource]:
    """Build method, tokenizer and batches; expensive files are made once per run."""
    config.folder.mkdir(parents=True, exist_ok=True)
    if config.checkpoint_store is not None and share.rank == 0:
        RunStore(config.folder, config.checkpoint_store).fetch()
    tokenizer = build_tokenizer(config, inputs)
    method = build_method(config, len(tokenizer), teacher=teacher)
    if config.text_warmup_steps and checkpoint_step(config.folder) == 0:
        _warm_up(config, method.model, tokenizer, inputs)
    batches = inputs.batches(tokenizer, share)
    if config.method.image_backbone.weight > 0:
        images = _images(batches.loader(0, num_workers=0))
        method.image_backbone = load_image_backbone(config.folder, images, TARGET_WIDTH)
    return method, tokenizer, batches


def _prepare_all(
    configs: Sequence[TrainingConfig], inputs: Inputs, share: RunShare
) -> list[tuple[Method, Tipsv2Tokenizer, BatchSource]]:
    """Prepare the runs of a job; students share the teacher's vision tower and heads."""
    first = configs[0]
    teacher = _load_teacher(first) if isinstance(first.method, DistillConfig) else None
    return [_prepare(config, inputs, share, teacher) for config in configs]


def _images(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Images [B, 3, H, W], and unnamed drawings, of a run's first batches."""
    for batch in map(with_unit_pixels, islice(batches, _BASIS_BATCHES)):
        yield batch.pixels_B3HW
        if batch.unnamed is not None:
            yield batch.unnamed.pixels_E3hw


def run(
    config: TrainingConfig, *, share: Callable[[BatchSource], BatchSource] | None = None
) -> Path:
    """Train, and save the model in the run's folder; resumes an unfinished run.

    Args:
        config: The run.
        share: Wraps the batches, for example to reuse them in other runs.
    """
    (folder,) = run_together([config], share=share)
    return folder


def run_together(
    configs: Sequence[TrainingConfig],
    *,
    share: Callable[[BatchSource], BatchSource] | None = None,
) -> list[Path]:
    """Train one run, or several students of one teacher, which encodes each batch once.

    Args:
        configs: The runs.
        share: Wraps the batches, for example to reuse them in other runs.

    Returns:
        The folders of the models.

    Raises:
        ValueError: The runs do not fit together.
    """
    _check_together(configs)
    first = configs[0]
    torch.set_num_threads(first.threads)
    rank, num_ranks = distributed.start()
    part = RunShare(
        batch_size=first.batch_size,
        num_steps=first.num_steps * first.accumulate,
        rank=rank,
        num_ranks=num_ranks,
    )
    with distributed.first_rank_first():
        inputs = open_inputs(first)
        if rank == 0:
            print("\n".join(inputs.describe()), flush=True)
        built = _prepare_all(configs, inputs, part)
    source = built[0][2] if share is None else share(built[0][2])
    least_step_s = _least_step_s(configs, num_ranks)
    runs = [
        _Run(config, (method, tokenizer, source), inputs, least_step_s=least_step_s)
        for config, (method, tokenizer, _) in zip(configs, built, strict=True)
    ]
    try:
        for one in runs:
            one.record()
        train_together([one.trainer for one in runs])
        return [one.finish() for one in runs]
    finally:
        for one in runs:
            one.close()
        distributed.stop()


def _least_step_s(configs: Sequence[TrainingConfig], num_ranks: int) -> float | None:
    """Seconds of a step at the device's peak speed, if that is known and its work is counted."""
    device = known_device()
    if device is None or isinstance(configs[0].method, SpaceConfig):
        return None
    return job_flops(configs, num_ranks=num_ranks) / device.peak_flops


_SHARED = ("data", "num_steps", "batch_size", "accumulate", "precision", "teacher")


def _check_together(configs: Sequence[TrainingConfig]) -> None:
    """Check that runs of one job see the same batches and the same teacher."""
    first = configs[0]
    if len(configs) > 1 and not all(isinstance(c.method, DistillConfig) for c in configs):
        raise ValueError("only students of one teacher can share a job")
    if len({config.folder for config in configs}) < len(configs):
        raise ValueError("runs of one job need different names: do not set name")
    for config in configs[1:]:
        assert isinstance(first.method, DistillConfig)
        assert isinstance(config.method, DistillConfig)
        differing = [name for name in _SHARED if getattr(config, name) != getattr(first, name)]
        differing += [
            f"method.{name}"
            for name in ("head", "teacher_dtype")
            if getattr(config.method, name) != getattr(first.method, name)
        ]
        if differing:
            raise ValueError(
                f"{first.name} and {config.name} cannot share a job: they differ in "
                f"{', '.join(differing)}; set it alike, or run them one after the other"
            )


class _Run:
    """One run of a job: its trainer, its validation and its record."""

    def __init__(
        self,
        config: TrainingConfig,
        built: tuple[Method, Tipsv2Tokenizer, BatchSource],
        inputs: Inputs,
        *,
        least_step_s: float | None,
    ) -> None:
        method, tokenizer, batches = built
        self._config, self._tokenizer, self._inputs = config, tokenizer, inputs
        self._done, is_first = checkpoint_step(config.folder), distributed.is_first_rank()
        self._boards = (
            Boards(config.log_to, config.folder, from_step=self._done)
            if is_first
            else None
        )
        observation = Observation(
            config.folder, tokenizer, inputs.benchmarks(), boards=self._boards
        )
        self.trainer = Trainer(
            config,
            method,
            batches,
            validate=lambda step: observation.validate(step, self.trainer.parallel),
            report=observation.report,
            least_step_s=least_step_s,
        )

    def record(self) -> None:
        """Record this start in run.json, and print a summary; on rank 0."""
        if self._boards is not None:
            _record(self._config, self.trainer, self._inputs, from_step=self._done)

    def finish(self) -> Path:
        """Save the trained model; returns its folder."""
        trainer, folder = self.trainer, self._config.folder
        save_model(folder, trainer.parallel, self._tokenizer)
        if self._boards is not None:
            state = count_state(trainer.parallel.method, trainer.optimizers)
            record_end(folder, state_bytes=state)
        return folder / MODEL_FOLDER

    def close(self) -> None:
        """Close the boards."""
        if self._boards is not None:
            self._boards.close()


def _record(config: TrainingConfig, trainer: Trainer, inputs: Inputs, *, from_step: int) -> None:
    """Record this start in run.json, and print a summary."""
    device, num_ranks = trainer.parallel.device, distributed.num_ranks()
    state = plan_state(trainer.parallel.method, trainer.optimizers)
    print(
        f"{config.name}: steps {from_step} to {config.num_steps}, on {num_ranks} x {device.type}, "
        f"in {config.precision}; kept between steps: {state}",
        flush=True,
    )
    record_start(
        config.folder,
        config,
        from_step=from_step,
        device=device,
        num_ranks=num_ranks,
        seeds={"run": config.seed, "data": config.data.seed},
        data=inputs.facts(),
        state_bytes=state,
    )
