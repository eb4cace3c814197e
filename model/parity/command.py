"""`python -m model check`: measure a package's parity with torch anew, and write it down if asked.

For a package that was written on another machine: a CPU without bf16 proves nothing of bf16, and
what is not proven is not used unasked. Dense heads are proven where a package is written only,
since a package does not carry them for torch.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from model.manifest import ParityEntry
from model.package import ModelPackage, open_package, write_manifest
from model.parity.table import parity_table, replace_section

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

    from model.parity.proof import prove_package  # noqa: PLC0415

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
