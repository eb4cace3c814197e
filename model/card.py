"""A package's model card: the author's text, then tables of what the manifest states."""

from collections.abc import Sequence
from typing import Final

from model.manifest import Manifest, ParityEntry, ScoreEntry

SCORES: Final = "## Scores"
SCORES_TEXT: Final = (
    "Values with 95 % intervals; n is the number of examples. Images were decoded in full, as a "
    "server does with `jpeg_decode=exact`."
)
PARITY: Final = "## Exported graphs against the model"
PARITY_TEXT: Final = (
    "Measured on photographs and a composed scene of several sizes, and on words and sentences. "
    "Cosines are the lowest and the mean. Masks are the share of pixels with the same class, of "
    "all pixels and of those whose best two classes differ by a cosine of at least 0.01. A graph "
    "that exceeds the limits of its precision is not chosen by default."
)
PARITY_HEADER: Final = (
    *("file", "run by", "precision", "largest difference", "cosine CLS", "cosine patches"),
    *("masks", "passes"),
)


def render_card(text: str, manifest: Manifest) -> str:
    """Append tables of scores and parity to the text, which may have front matter for the hub."""
    parts = [author_text(text)]
    if manifest.scores:
        parts += [SCORES, SCORES_TEXT]
    groups: dict[tuple[str, str], list[ScoreEntry]] = {}
    for score in manifest.scores:
        groups.setdefault((score.task, score.split), []).append(score)
    for (task, split), scores in groups.items():
        rows = [[s.row, s.metric, _with_interval(s), str(s.count)] for s in scores]
        parts += [f"### {task}, {split}", _table(["row", "metric", "value", "n"], rows)]
    if manifest.parity:
        parts += [PARITY, PARITY_TEXT, parity_table(manifest.parity)]
    return "\n\n".join(parts) + "\n"


def author_text(card: str) -> str:
    """The text of a card before its tables."""
    ends = [card.find(f"\n{heading}\n") for heading in (SCORES, PARITY)]
    return card[: min((end for end in ends if end >= 0), default=len(card))].strip()


def parity_table(parity: Sequence[ParityEntry]) -> str:
    """Render a table with a row for each entry."""
    return _table(PARITY_HEADER, [_row(entry) for entry in parity])


def _row(entry: ParityEntry) -> tuple[str, ...]:
    difference = f"{entry.max_abs_diff:.1e}" if entry.is_finite else "not finite"
    return (
        f"`{entry.file}`",
        entry.runtime,
        entry.precision,
        difference,
        _pair(entry.min_cosine_cls, entry.mean_cosine_cls),
        _pair(entry.min_cosine_patches, entry.mean_cosine_patches),
        _masks(entry),
        "yes" if entry.passed else "no",
    )


def _pair(worst: float | None, mean: float | None) -> str:
    return ", ".join(f"{cosine:.6f}" for cosine in (worst, mean) if cosine is not None) or "-"


def _masks(entry: ParityEntry) -> str:
    if entry.depth_error is not None:
        return f"depth {100 * entry.depth_error:.3g} % off"
    if entry.normals_degrees is not None:
        return f"normals {entry.normals_degrees:.3g} degrees off"
    shares = (entry.mask_agreement, entry.clear_mask_agreement)
    # Rounded down, so that 100 % means that no pixel differs.
    texts = [f"{int(1e4 * share) / 100:.2f} %" for share in shares if share is not None]
    return ", ".join(texts) or "-"


def _with_interval(score: ScoreEntry) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.2f}"
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
