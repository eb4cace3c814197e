"""What may lie in a package's folder: the files of the manifest as it describes them, and no code.

A package comes from elsewhere and is opened by many libraries, so it is judged as a whole, before
any of them sees it: also what the manifest does not name, and what its graphs name in turn.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from model.manifest import MANIFEST_NAME, FileEntry, check_file_name
from model.onnx_files import external_files

# Formats whose readers run what is inside; weights are safetensors and ONNX only.
PICKLES: Final = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# What no library loads may lie beside the package: what people, hubs and git put there.
HARMLESS: Final = frozenset({".md", ".txt"})
HARMLESS_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
ADVICE: Final = "copy the package again, or export it again"


class PackageError(ValueError):
    """A folder is not a usable model package; the message says why and what to do."""


def check_files(folder: Path, files: Mapping[str, FileEntry], *, verify: bool) -> None:
    """Check a folder against the files that a manifest lists.

    Args:
        folder: Of the package.
        files: As the manifest lists them.
        verify: Compare the SHA-256 of every file. Without it only presence and lengths are checked.

    Raises:
        PackageError: A file is missing, is not what the manifest says, lies outside of the folder,
            is a pickle, or is not listed although something could load it.
    """
    root = folder.resolve()
    for name in _names(folder):
        _check_name(folder, name, is_listed=name in files)
    for name, entry in files.items():
        _check_file(folder, root, name, entry)
    for name, entry in files.items():
        if verify and sha256(folder / name) != entry.sha256:
            raise PackageError(
                f"{folder / name} is not the file its manifest describes (SHA-256); {ADVICE}"
            )
    # After the digests: before them a graph is anybody's.
    for name in files:
        if name.endswith(".onnx"):
            _check_graph(folder, name, files)


def sha256(path: Path) -> str:
    """Digest of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> Iterator[str]:
    """Everything below the folder that is no folder; links are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _check_name(folder: Path, name: str, *, is_listed: bool) -> None:
    path = PurePosixPath(name)
    if path.suffix.lower() in PICKLES:
        raise PackageError(
            f"{folder / name} can hold a pickle, whose reader runs what is inside; a model package "
            "has its weights as safetensors and ONNX only: remove it"
        )
    is_hidden = any(part.startswith(".") for part in path.parts)
    is_harmless = is_hidden or path.suffix.lower() in HARMLESS or path.name in HARMLESS_NAMES
    if not (is_listed or is_harmless or name == MANIFEST_NAME):
        raise PackageError(
            f"{folder / name} is not in the manifest, so nothing vouches for it; remove it, or "
            "export the model again"
        )


def _check_file(folder: Path, root: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.is_file():
        raise PackageError(f"{folder} lacks {name!r}, which its manifest lists; {ADVICE}")
    if not path.resolve().is_relative_to(root):
        raise PackageError(
            f"{path} is a link that leads out of the package; copy the package with its files in "
            "the place of links, as `cp -rL` does"
        )
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        raise PackageError(
            f"{path} has {size_bytes} bytes, its manifest says {entry.size_bytes}; {ADVICE}"
        )


def _check_graph(folder: Path, name: str, files: Mapping[str, FileEntry]) -> None:
    try:
        locations = external_files(folder / name)
    except ValueError as error:
        raise PackageError(f"{error}; {ADVICE}") from error
    for location in sorted(locations):
        beside = (PurePosixPath(name).parent / location).as_posix()
        try:
            check_file_name(beside)
        except ValueError:
            raise PackageError(
                f"{folder / name} keeps weights in {location!r}, outside of the package; export "
                "the model again"
            ) from None
        if beside not in files:
            raise PackageError(
                f"{folder / name} keeps weights in {location!r}, which the manifest does not list; "
                "export the model again"
            )
