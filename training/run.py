"""Puts a run together: data, tokenizer, model, method, validation, trainer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.text import TEMPLATES
from training import distributed
from training.board import Board
from training.checkpoint import checkpoint_step, save_atomically
from training.config import TrainingConfig
from training.data.folder import TRAIN_STYLES, DataFolder, seen_names
from training.data.loader import BatchPlan, SceneBatches
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.evaluate.benchmark import development_benchmarks
from training.memory import count_state, plan_state
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain
from training.methods.teacher import MODEL_FOLDER, load_teacher
from training.methods.terms import TRUNK_WIDTH
from training.observation import Observation, save_model
from training.pretrained.text import warm_up_text_tower
from training.pretrained.trunk import cached_sprite_targets
from training.run_record import digest, record_end, record_start
from training.start import load_start
from training.tokenizer import train_tokenizer
from training.trainer import BatchSource, Trainer

_TOKENIZER_SCENES = 2500


def _corpus(source: SceneSource, names: Sequence[str]) -> list[str]:
    """Captions of a few thousand scenes, each name often enough to become few tokens."""
    small = SceneConfig(size=28, count_weights=(0.2, 0.4, 0.4))
    texts = []
    for index in range(_TOKENIZER_SCENES):
        captions = compose_scene(source, index, small).captions
        texts += [captions.short, captions.keywords, captions.scene]
    return texts + [f"a {name}" for name in names] * 40


def _warm_up(
    config: TrainingConfig, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, source: SceneSource
) -> None:
    """Warm up a text tower once a run; the result is kept in the run's folder."""
    path = config.folder / "text-tower.pt"
    if not path.exists():
        texts = _text_corpus(source)
        cosine = warm_up_text_tower(
            model, tokenizer, texts, num_steps=config.text_warmup_steps, seed=config.seed
        )
        print(json.dumps({"text_warmup_cosine": round(cosine, 4)}), flush=True)
        save_atomically(model.text_model.state_dict(), path)
    model.text_model.load_state_dict(torch.load(path, weights_only=True))


def build_tokenizer(config: TrainingConfig, source: SceneSource) -> Tipsv2Tokenizer:
    """Load the run's, its start's or its teacher's tokenizer, or train one; the run keeps it."""
    known = [
        folder / "tokenizer"
        for folder in (config.folder, config.start, config.teacher)
        if folder is not None and (folder / "tokenizer/tokenizer.json").exists()
    ]
    if known:
        tokenizer: Tipsv2Tokenizer = Tipsv2Tokenizer.from_pretrained(known[0])
    else:
        tokenizer = train_tokenizer(_corpus(source, sorted(seen_names())), config.model.vocab_size)
    tokenizer.save_pretrained(config.folder / "tokenizer")
    return tokenizer


def new_model(config: TrainingConfig, vocab_size: int) -> Tipsv2Model:
    """A randomly initialised model whose patch embedding expects [0, 1] pixels.

    The bias of the patch embedding starts so that mid-gray maps to zero: the same as centring the
    pixels, without a normalisation that the released models do not have.
    """
    torch.manual_seed(config.seed)
    model = Tipsv2Model(config.model.build(vocab_size))
    # On a CPU, plain matrix products are 1.6 times faster for so few tokens than the fused kernel.
    model.set_attn_implementation("eager")
    projection = model.vision_model.embeddings.patch_embeddings.projection
    with torch.no_grad():
        projection.weight.mul_(4.0)
        projection.bias.copy_(-0.5 * projection.weight.sum(dim=(1, 2, 3)))
    return model


def build_method(config: TrainingConfig, vocab_size: int) -> Method:
    """Build the model and what trains it."""
    model = new_model(config, vocab_size)
    if config.start is not None:
        load_start(model, config.start)
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        teacher = load_teacher(
            config.teacher, config.method.head, dtype=config.method.teacher_dtype
        )
        return Distill(model, config.method, teacher)
    return Pretrain(model, config.method)


def _text_corpus(source: SceneSource) -> list[str]:
    """Every seen name in every prompt, and the captions of some scenes."""
    prompts = [t.format(name) for t in ("{}", *TEMPLATES["tcl"]) for name in sorted(seen_names())]
    return [*prompts, *dict.fromkeys(_corpus(source, ()))]


def _prepare(
    config: TrainingConfig, data: DataFolder, *, rank: int, num_ranks: int
) -> tuple[Method, Tipsv2Tokenizer, SceneBatches]:
    """Build what is trained and what on; files that take long to make are made once a run."""
    config.folder.mkdir(parents=True, exist_ok=True)
    source = data.source(
        "train", styles=config.data.styles, names=seen_names(), seed=config.data.seed
    )
    tokenizer = build_tokenizer(config, source)
    method = build_method(config, len(tokenizer))
    if config.text_warmup_steps and checkpoint_step(config.folder) == 0:
        _warm_up(config, method.model, tokenizer, source)
    batches = SceneBatches(
        source,
        tokenizer,
        BatchPlan(
            stages=config.data.stages,
            batch_size=config.batch_size,
            num_steps=config.num_steps * config.accumulate,
            captions=config.data.captions,
            crops=config.data.crops,
        ),
        targets_MK=_trunk_targets(config, source) if config.method.trunk_weight else None,
        rank=rank,
        num_ranks=num_ranks,
    )
    return method, tokenizer, batches


def run(
    config: TrainingConfig, *, share: Callable[[SceneBatches], BatchSource] | None = None
) -> Path:
    """Train, and leave the model in the run's folder; resumes where an earlier call was stopped.

    Args:
        config: The run.
        share: Wraps the batches, such as to keep them for other runs that will see the same.
    """
    torch.set_num_threads(config.threads)
    rank, num_ranks = distributed.start()
    data = DataFolder(path=config.data.folder)
    with distributed.first_rank_first():
        method, tokenizer, batches = _prepare(config, data, rank=rank, num_ranks=num_ranks)
    source = batches if share is None else share(batches)
    done = checkpoint_step(config.folder)
    board = Board(config.folder, from_step=done) if rank == 0 else None
    observation = Observation(config.folder, tokenizer, development_benchmarks(data), board=board)
    trainer = Trainer(
        config,
        method,
        source,
        validate=lambda step: observation.validate(step, trainer.parallel),
        report=observation.report,
        rank=rank,
    )
    try:
        if rank == 0:
            _record(config, trainer, data, from_step=done)
        trainer.train()
        save_model(config.folder, trainer.parallel, tokenizer)
        if rank == 0:
            record_end(config.folder, state_bytes=count_state(method, trainer.optimizers))
    finally:
        if board is not None:
            board.close()
        distributed.stop()
    return config.folder / MODEL_FOLDER


def _record(config: TrainingConfig, trainer: Trainer, data: DataFolder, *, from_step: int) -> None:
    """Keep what repeats this start in run.json, and say what it takes."""
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
        data={"folder": data.path, "digest": digest([data.path / "sprites.npz"])},
        state_bytes=state,
    )


def _trunk_targets(config: TrainingConfig, source: SceneSource) -> NDArray[np.float32]:
    bank = source.bank
    trainable = np.isin(bank.style_M, [bank.styles.index(style) for style in TRAIN_STYLES])
    path = config.data.folder / f"trunk-{TRUNK_WIDTH}.npz"
    return cached_sprite_targets(path, bank.rgba_MSS4, trainable, TRUNK_WIDTH)
