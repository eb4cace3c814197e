"""Renders the model card: the author's text, then tables of what was measured."""

from collections.abc import Sequence
from typing import Final

from model.manifest import Manifest, ScoreEntry
from model.parity.table import HEADING as PARITY_HEADING
from model.parity.table import parity_section

SCORES: Final = "## Scores"


def render_card(text: str, manifest: Manifest) -> str:
    """Put tables of scores and parity under the author's text.

    Args:
        text: Markdown, with a front matter for the hub if wanted.
        manifest: With scores and parity.

    Returns:
        Markdown that ends in a newline.
    """
    parts = [text.strip()]
    if manifest.scores:
        parts += [SCORES, "Values with 95 % intervals; n is the number of examples."]
    groups: dict[tuple[str, str], list[ScoreEntry]] = {}
    for score in manifest.scores:
        groups.setdefault((score.task, score.split), []).append(score)
    for (task, split), scores in groups.items():
        parts += [f"### {task}, {split}", _score_table(scores)]
    if manifest.parity:
        parts.append(parity_section(manifest.parity))
    return "\n\n".join(parts) + "\n"


def author_text(card: str) -> str:
    """What stands before the tables of a rendered card."""
    ends = [card.find(f"\n{heading}\n") for heading in (SCORES, PARITY_HEADING)]
    return card[: min((end for end in ends if end >= 0), default=len(card))].strip()


def _score_table(scores: Sequence[ScoreEntry]) -> str:
    rows = [[s.row, s.metric, _with_interval(s), str(s.count)] for s in scores]
    return _table(["row", "metric", "value", "n"], rows)


def _with_interval(score: ScoreEntry) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.2f}"
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
