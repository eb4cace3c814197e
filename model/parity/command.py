"""`python -m model check`: measure a package's graphs, and print the result."""

from collections.abc import Callable, Sequence
from typing import Final

from model.card import parity_table, render_card
from model.manifest import CARD, ParityEntry
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
        card.write_text(render_card(before, manifest), encoding="utf-8")
        return write_manifest(package.path, manifest)
    except BaseException:
        # The old manifest, which is still in place, has the digest of the old card.
        card.write_text(before, encoding="utf-8")
        raise


def _backend(entry: ParityEntry) -> tuple[str, str, str]:
    return entry.file, entry.runtime, entry.precision
