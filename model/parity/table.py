"""Parity entries as a part of the model card."""

import re
from collections.abc import Sequence
from typing import Final

from model.manifest import ParityEntry

HEADING: Final = "## Exported graphs against the model"
TEXT: Final = (
    "On photographs and a composed scene of several sizes, and on words and sentences. Cosines are "
    "the worst, then the mean; masks are the share of pixels that keep their class, of all and of "
    "those whose best two classes are told apart by a cosine of 0.01. What does not keep the "
    "limits of its precision is not used unasked."
)
HEADER: Final = (
    "file",
    "run by",
    "precision",
    "largest difference",
    "cosine CLS",
    "cosine patches",
    "masks",
    "passes",
)


def parity_section(parity: Sequence[ParityEntry]) -> str:
    """Heading, explanation and table, in Markdown."""
    return f"{HEADING}\n\n{TEXT}\n\n{parity_table(parity)}"


def parity_table(parity: Sequence[ParityEntry]) -> str:
    """A line for each entry."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_row, parity)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_section(card: str, parity: Sequence[ParityEntry]) -> str:
    """A card with these entries in place of those it has; at its end where it has none."""
    section = parity_section(parity) + "\n"
    old = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if old.search(card):
        return old.sub(lambda found: section if found.end() == len(card) else section + "\n", card)
    return f"{card.rstrip()}\n\n{section}"


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
    """Shares of pixels; of depth and normals what stands in their place."""
    if entry.depth_error is not None:
        return f"depth {100 * entry.depth_error:.3g} % off"
    if entry.normals_degrees is not None:
        return f"normals {entry.normals_degrees:.3g} degrees off"
    shares = (entry.mask_agreement, entry.clear_mask_agreement)
    # Rounded down: 100 % is said where no pixel differs, and nowhere else.
    told = [f"{int(1e4 * share) / 100:.2f} %" for share in shares if share is not None]
    return ", ".join(told) or "-"
