"""`python -m model check`: measure a package's graphs, and print the result."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from model.manifest import ParityEntry
from model.package import ModelPackage, open_package, write_manifest

# A package from a machine without bf16 has no bf16 results, and a precision without results is not
# chosen by default. Dense heads are measured only when a package is written, as it has no torch
# weights of them.
HELP: Final = "Compare a package's graphs with its model, on every backend of this machine."
THOROUGH_HELP: Final = (
    "Compare on all sizes: also on twice the native size and on batches of it, which takes many "
    "times as long with a large model."
)
WRITE_HELP: Final = (
    "Write the results to the package's manifest and card; results of backends that this machine "
    "lacks are kept."
)
CARD: Final = "README.md"
HEADING: Final = "## Exported graphs against the model"
TEXT: Final = (
    "Measured on photographs and a composed scene of several sizes, and on words and sentences. "
    "Cosines are the lowest and the mean. Masks are the share of pixels with the same class, of "
    "all pixels and of those whose best two classes differ by a cosine of at least 0.01. A graph "
    "that exceeds the limits of its precision is not chosen by default."
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


def run(
    source: str, *, is_thorough: bool, is_written: bool, progress: Callable[[str], None]
) -> None:
    """Measure, print the table, and write it if requested.

    Args:
        source: A model package, or `bundled`.
        is_thorough: Compare on all sizes.
        is_written: Write the results to the package.
        progress: Called with each step.

    Raises:
        PackageError: The package does not exist or is invalid.
        EncoderError: torch cannot load its encoder.
        ParityError: A graph exceeds its limits; nothing is written.
    """
    # Importing torch takes seconds, and other commands do not need it.
    from model.encoder import load_encoder  # noqa: PLC0415
    from model.parity.gate import prove_package, run_reference  # noqa: PLC0415

    package = open_package(source)
    # Nothing holds the encoder while the graphs are compared.
    reference = run_reference(
        load_encoder(package.path), package, is_thorough=is_thorough, progress=progress
    )
    entries = prove_package(package, reference, progress=progress)
    print(parity_table(entries))
    if is_written:
        write_parity(package, entries)
        progress(f"written to {package.path}")


def write_parity(package: ModelPackage, entries: Sequence[ParityEntry]) -> ModelPackage:
    """Replace the entries of the same graphs and backends in a package's manifest and card.

    Args:
        package: A writable package.
        entries: The new measurements.

    Returns:
        The changed package.
    """
    measured = {_backend(entry) for entry in entries}
    kept = [entry for entry in package.manifest.parity if _backend(entry) not in measured]
    manifest = package.manifest.model_copy(update={"parity": [*entries, *kept]})
    card = package.path / CARD
    before = card.read_text(encoding="utf-8")
    try:
        card.write_text(replace_section(before, manifest.parity), encoding="utf-8")
        return write_manifest(package.path, manifest)
    except BaseException:
        # The old manifest, which is still in place, has the digest of the old card.
        card.write_text(before, encoding="utf-8")
        raise


def _backend(entry: ParityEntry) -> tuple[str, str, str]:
    return entry.file, entry.runtime, entry.precision


def parity_section(parity: Sequence[ParityEntry]) -> str:
    """Render heading, explanation and table in Markdown."""
    return f"{HEADING}\n\n{TEXT}\n\n{parity_table(parity)}"


def parity_table(parity: Sequence[ParityEntry]) -> str:
    """Render a table with a row for each entry."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_row, parity)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_section(card: str, parity: Sequence[ParityEntry]) -> str:
    """Replace the parity section of a card, or append it."""
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
    if entry.depth_error is not None:
        return f"depth {100 * entry.depth_error:.3g} % off"
    if entry.normals_degrees is not None:
        return f"normals {entry.normals_degrees:.3g} degrees off"
    shares = (entry.mask_agreement, entry.clear_mask_agreement)
    # Rounded down, so that 100 % means that no pixel differs.
    texts = [f"{int(1e4 * share) / 100:.2f} %" for share in shares if share is not None]
    return ", ".join(texts) or "-"
