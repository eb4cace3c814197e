"""The page's frame: what was run and how, and the tables that belong to no single effect."""

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Tipsv2Model

from training.config import ModelConfig
from training.reproduce.averages import AverageCost
from training.reproduce.mechanism import falls
from training.reproduce.plan import EFFECTS, LAST, RECIPE, Plan, PlannedRun
from training.reproduce.report import effect_section, painted_section, table
from training.reproduce.results import Results, SeedMean
from training.reproduce.runner import KINDS, read_record
from training.reproduce.summary import summary_section

NOTES = Path(__file__).with_name("notes.md")

_INTRODUCTION = """\
# The paper's effects in miniature

Written by `python -m training reproduce`, which goes on where it was stopped and rewrites this
page after each run; do not edit it. TIPSv2 (arXiv:2604.12012) trains ViT-g on 116 million
images; these models have {millions:.1f} million parameters and see {images:,} to
{most_images:,} composed scenes each, so what is looked for is each effect's direction, not its
size.

- Machine and date: {machine}; torch {torch}; one thread; {date}.
- Command: `python -m training reproduce` (seeds {seeds}); complete seeds: {complete}.
- Model: width {dim}, {layers} vision layers, {side} px images of {patches} patches, batch
  {batch}; 50 everyday names in four emoji styles; Muon and AdamW, as in the other recipes.
- A seed: one contrastive start of {start_steps} steps (the first third close-ups of {close_up}
  px), from which every pretraining variant goes on for {pretrain_steps} steps with its own
  method; the one-caption variant has a start of its own. Students start from random vision
  weights and their teacher's text tower, {distill_steps} steps. All variants of a seed have the
  same initial weights and see the same scenes in the same order, so differences are paired. The
  tokenizer and the text tower's warm-up on MiniLM are shared by all seeds.
- Off: DINO (no local crops; their cost was not in the budget). No patch-name term and no frozen
  image backbone: nothing here but the paper's own losses.
- Measured on {scenes} test scenes of two or three objects in each set (a single object would
  reward painting the whole image), candidates the 50 names, nine prompts; nothing was chosen
  on them. mIoU in percent; "which" is the share of object pixels given the right one of the
  scene's objects.
- *painted CLS1* is the same model's class of the whole image painted everywhere, *largest
  object* an oracle that does the same with the largest object's name, *chance* a blind guess.
- Levels: mean ± standard deviation over seeds. Differences: mean, [95 % t-interval over seeds],
  (95 % interval when the scenes are drawn again, seeds kept), seeds above zero. With three seeds
  the t-interval is wide: it says what three seeds can say. "Reproduced" needs it above zero. Many
  intervals are looked at here, so a single one near zero means little."""


def machine() -> str:
    """Name the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = "with" if any("amx_tile" in line for line in lines) else "without"
    name = models[0] if models else platform.machine()
    return f"{name}, {os.cpu_count()} cores {amx} AMX, shared with other work"


def _num_parameters(model: ModelConfig) -> int:
    with torch.device("meta"):
        built = Tipsv2Model(model.build(model.vocab_size))
    return sum(parameter.numel() for parameter in built.parameters())


def _introduction(plan: Plan, runs: Sequence[PlannedRun]) -> str:
    scale = plan.scale
    seeds = sorted({run.seed for run in runs})
    images = [run.config.num_steps * run.config.batch_size for run in runs]
    unfinished = {
        run.seed
        for run in runs
        if run.variant not in LAST and read_record(run.config.folder) is None
    }
    complete = [seed for seed in seeds if seed not in unfinished]
    return _INTRODUCTION.format(
        millions=_num_parameters(scale.model) / 1e6,
        images=min(images),
        most_images=scale.batch_size * (scale.start_steps + scale.pretrain_steps),
        machine=machine(),
        torch=torch.__version__,
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        seeds=" ".join(map(str, seeds)),
        complete=f"{len(complete)} of {len(seeds)}",
        dim=scale.model.dim,
        layers=scale.model.vision_layers,
        side=scale.size,
        patches=(scale.size // 14) ** 2,
        batch=scale.batch_size,
        start_steps=scale.start_steps,
        close_up=scale.close_up_size,
        pretrain_steps=scale.pretrain_steps,
        distill_steps=scale.distill_steps,
        scenes=scale.num_scenes,
    )


def averages_section(costs: Sequence[AverageCost]) -> str:
    """Bytes and step time of each way of averaging."""
    title = "## What averaging costs"
    if not costs:
        return f"{title}\n\nNot measured yet."
    head = next(cost for cost in costs if cost.ema == "head")
    rows = [
        [
            cost.ema,
            f"{cost.parameter_bytes / 1e6:.2f}",
            f"{cost.ema_bytes / 1e6:.2f}",
            f"{cost.optimizer_bytes / 1e6:.2f}",
            f"{cost.total_bytes / 1e6:.2f}",
            f"{cost.total_bytes / head.total_bytes:.3f}",
            f"{cost.ratio_to_head:.3f} [{cost.ratio_low:.3f}, {cost.ratio_high:.3f}]",
        ]
        for cost in costs
    ]
    header = ["average", "parameters MB", "average MB", "optimizers MB", "all MB", "by head's"]
    return "\n\n".join(
        [
            title,
            "Bytes are counted, float32. Step time is processor time by head-only's on the same "
            "batch, the ways taking turns: median and quartiles over steps.",
            table([*header, "step time"], rows),
        ]
    )


def mechanism_section(runs: Sequence[PlannedRun]) -> str:
    """Patch loss on visible and masked patches, first and last."""

    def cell(mean: SeedMean) -> str:
        return (
            f"{mean.mean:.2f} ± {mean.spread:.2f}" if len(mean.values) > 1 else f"{mean.mean:.2f}"
        )

    rows = [
        [fall.variant, fall.part, cell(fall.first), cell(fall.last), cell(fall.change)]
        for fall in falls(runs)
    ]
    return "\n\n".join(
        [
            "## The mechanism: patch loss on visible and on masked patches",
            "Cross-entropy with the teacher's assignments in the first and the last thirty steps. "
            "In pretraining the targets move with the model; in distillation they stand still.",
            table(["run", "patches", "first", "last", "change"], rows) if rows else "None yet.",
        ]
    )


def cost_section(runs: Sequence[PlannedRun]) -> str:
    """Processor time of each variant's training, where one call made it whole."""
    times: dict[str, list[float]] = {}
    images: dict[str, int] = {}
    for run in runs:
        record = read_record(run.config.folder)
        if record is not None and record.is_whole:
            times.setdefault(run.variant, []).append(record.cpu_s)
            images[run.variant] = record.num_images
    rows = [
        [name, f"{images[name]:,}", f"{statistics.median(cpu_s):.0f}", str(len(cpu_s))]
        for name, cpu_s in times.items()
    ]
    header = ["run", "scenes", "processor seconds, median", "runs"]
    return "\n\n".join(
        [
            "## Cost",
            "Making scenes is in the first variant that sees them; the others share them.",
            table(header, rows) if rows else "None yet.",
        ]
    )


def write_page(
    plan: Plan,
    runs: Sequence[PlannedRun],
    output: Path,
    *,
    averages: Sequence[AverageCost],
) -> None:
    """Write everything that is known by now."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_page(plan, runs, averages), encoding="utf-8")


def _page(plan: Plan, runs: Sequence[PlannedRun], averages: Sequence[AverageCost]) -> str:
    results = Results(runs)
    variants = list(dict.fromkeys(name for effect in EFFECTS for name in effect.variants))
    kind = results.better_kind(variants) if results.seeds(RECIPE) else KINDS[0]
    parts = [
        _introduction(plan, runs),
        f"Verdicts go by **{kind}**, which are ahead on validation scenes.",
        summary_section(results, kind),
        NOTES.read_text(encoding="utf-8").strip() if NOTES.exists() else "",
        *(effect_section(effect, results, kind) for effect in EFFECTS),
        painted_section(results, variants),
        averages_section(averages),
        mechanism_section(runs),
        cost_section(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
