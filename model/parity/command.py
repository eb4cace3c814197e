"""`python -m model check`: measure a package's graphs, and print the result."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Final

from model.manifest import ParityEntry
from model.package import ModelPackage, open_package, write_manifest

# Parity entries as a part of the model card.

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


# `python -m model check`: measure a package's parity with torch anew, and write it down if asked.
#
# For a package that was written on another machine: a CPU without bf16 proves nothing of bf16, and
# what is not proven is not used unasked. Dense heads are proven where a package is written only,
# since a package does not carry them for torch.

HELP: Final = "compare a package's graphs with its model, in every way that this machine can"
CARD: Final = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("package", help="a model package, or `bundled`")
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the numbers into the package's manifest and card; those of ways that this "
        "machine cannot run stay",
    )


def run(options: argparse.Namespace, progress: Callable[[str], None]) -> None:
    """Measure, print the table, and write it where asked.

    Args:
        options: As declared here.
        progress: Called with what is being done.

    Raises:
        PackageError: There is no such package.
        ParityError: A graph does not keep its limits; nothing is written.
    """
    # torch takes seconds to import, which other commands need not wait for.
    import torch  # noqa: PLC0415
    from transformers import Tipsv2Model  # noqa: PLC0415

    from model.parity.gate import prove_package  # noqa: PLC0415

    package = open_package(options.package)
    model = Tipsv2Model.from_pretrained(
        package.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    entries = prove_package(model.eval(), package, progress=progress)
    print(parity_table(entries))
    if options.write:
        write_parity(package, entries)
        progress(f"written to {package.path}")


def write_parity(package: ModelPackage, entries: Sequence[ParityEntry]) -> ModelPackage:
    """Replace a package's entries of the same graphs and ways, in its manifest and its card.

    Args:
        package: Its files may be written to.
        entries: What was measured.

    Returns:
        The package as it is now.
    """
    measured = {_way(entry) for entry in entries}
    kept = [entry for entry in package.manifest.parity if _way(entry) not in measured]
    manifest = package.manifest.model_copy(update={"parity": [*entries, *kept]})
    card = package.path / CARD
    before = card.read_text(encoding="utf-8")
    try:
        card.write_text(replace_section(before, manifest.parity), encoding="utf-8")
        return write_manifest(package.path, manifest)
    except BaseException:
        # The old manifest vouches for the old card only.
        card.write_text(before, encoding="utf-8")
        raise


def _way(entry: ParityEntry) -> tuple[str, str, str]:
    return entry.file, entry.runtime, entry.precision
