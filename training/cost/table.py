"""Prints estimates as two Markdown tables: what computing costs, and what one device must hold."""

from collections.abc import Sequence

from training.cost.estimate import Cluster, Estimate
from training.cost.memory import num_parameters

_COMPUTE = (
    "recipe",
    "vision + text + head, M parameters",
    "TFLOP an image",
    "PFLOP a step",
    "steps x images",
    "GPU hours",
    "hours",
)
_MEMORY = (
    "recipe",
    "parameters",
    "gradients",
    "EMA",
    "optimizer",
    "teacher",
    "copies",
    "an image",
    "images a GPU",
    "fit at once",
    "parts",
    "in use",
)


def render(estimates: Sequence[Estimate], cluster: Cluster) -> str:
    """Lay estimates on one cluster out, with what they are estimates of."""
    device = cluster.device
    about = (
        "Every number is an estimate from counted operations and bytes; nothing was run.\n"
        f"Devices: {cluster.num_devices} x {device.title}, {device.peak_flops / 1e12:.0f} TFLOP/s "
        f"at best, of which {100 * cluster.mfu:g} % are assumed to be used:\n"
        "hours are as good as this share, which is yours to measure.\n"
        f"Source: {device.source}.\n"
        "Operations: matrix products, convolutions and attention; a multiply-add is two; "
        "recomputed ones count."
    )
    memory = (
        "Memory of one device in GB of 1e9 bytes. EMA: the moving average of the head. Copies: "
        "autocast's bfloat16 weights\nand what FSDP2 has whole. An image: what the backward pass "
        "keeps of one, and its share of the working memory.\nFit at once: images in nine tenths "
        "of the memory. Parts: micro-batches of a step (accumulate); contrast sees one at a time."
    )
    return "\n\n".join(
        (
            about,
            _table(_COMPUTE, [_compute_row(estimate) for estimate in estimates]),
            memory,
            _table(_MEMORY, [_memory_row(estimate) for estimate in estimates]),
        )
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def _compute_row(estimate: Estimate) -> list[str]:
    plan = estimate.plan
    model = plan.method.model
    towers = [num_parameters(tower) for tower in (model.vision_model, model.text_model)]
    heads = plan.num_trained - sum(towers)
    return [
        plan.name,
        " + ".join(_significant(number / 1e6) for number in (*towers, heads)),
        _significant(estimate.flops_per_image / 1e12),
        _significant(estimate.flops_per_image * plan.global_batch / 1e15),
        f"{plan.num_steps:,} x {plan.global_batch:,}",
        f"{float(_significant(estimate.device_hours)):,.0f}",
        _significant(estimate.hours),
    ]


def _memory_row(estimate: Estimate) -> list[str]:
    state, parts = estimate.state, estimate.micro_batches
    held = (
        state.parameters,
        state.gradients,
        state.average,
        state.optimizer,
        state.teacher,
        state.copies + state.gathered,
        estimate.bytes_per_image,
    )
    return [
        estimate.plan.name,
        *(_gigabytes(number) for number in held),
        str(estimate.batch_per_device),
        str(estimate.largest_batch),
        "does not fit" if parts is None else str(parts),
        _gigabytes(estimate.memory_bytes),
    ]


def _gigabytes(num_bytes: float) -> str:
    return _significant(num_bytes / 1e9)


def _significant(value: float) -> str:
    """Three digits: no estimate is better than that."""
    return f"{float(f'{value:.3g}'):.15g}"
