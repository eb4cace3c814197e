"""The model package: a folder with weights, graphs, tokenizer and a manifest that vouches for them.

Digests are verified before a file is opened by anyone else; see `model.package_check`. Knows no
runtime and no network.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from model.files import atomic_write
from model.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ParityEntry,
    ParityLimits,
    ScoreEntry,
    ZeroShot,
    check_file_name,
)
from model.package_check import PackageError, check_files, sha256

__all__ = [
    "BUNDLED_FOLDER",
    "FileEntry",
    "Manifest",
    "ModelPackage",
    "PackageError",
    "ParityEntry",
    "ParityLimits",
    "ScoreEntry",
    "ZeroShot",
    "check_output",
    "open_package",
    "write_manifest",
]

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A verified package: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Args:
            name: Relative POSIX path, such as `onnx/vision_model.onnx`.

        Raises:
            PackageError: The manifest does not list it, so nothing vouches for its content.
        """
        if name not in self.manifest.files:
            raise PackageError(
                f"model package {self.manifest.name!r} has no file {name!r}; it was exported "
                "without it: export the model again, or choose another runtime or model"
            )
        return self.path / name


def open_package(source: str | Path, *, verify: bool = True) -> ModelPackage:
    """Open a model package and check it against its manifest.

    Args:
        source: "bundled" for the model shipped with this program, or a folder.
        verify: Compare the SHA-256 of every file. Without it only presence and lengths are checked.

    Raises:
        PackageError: There is no such package, its manifest is malformed, a file is missing or is
            not what the manifest says, or something lies in the folder that should not.
    """
    folder = _resolve(source)
    manifest = _read_manifest(folder)
    if not manifest.files:
        raise PackageError(f"{folder / MANIFEST_NAME} lists no files; export the model again")
    check_files(folder, manifest.files, verify=verify)
    return ModelPackage(path=folder, manifest=manifest)


def write_manifest(folder: Path, manifest_without_files: Manifest) -> ModelPackage:
    """Hash every file below a folder and write the manifest that lists them.

    The manifest appears at once or not at all. An older manifest of the folder is replaced.

    Raises:
        PackageError: The folder is empty or holds a file that a package cannot carry.
    """
    files: dict[str, FileEntry] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST_NAME:
            continue
        try:
            check_file_name(name)
        except ValueError as error:
            raise PackageError(f"cannot package {folder}: {error}; rename the file") from error
        files[name] = FileEntry(sha256=sha256(path), size_bytes=path.stat().st_size)
    if not files:
        raise PackageError(f"{folder} is empty; write the model's files before its manifest")
    check_files(folder, files, verify=False)
    manifest = manifest_without_files.model_copy(update={"files": files})
    atomic_write(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return ModelPackage(path=folder, manifest=manifest)


def check_output(output: Path) -> None:
    """Refuse to write over what is no package.

    Raises:
        ValueError: The folder holds something else.
    """
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output / MANIFEST_NAME).is_file():
        raise ValueError(f"{output} exists and is no model package; choose another folder")


def _resolve(source: str | Path) -> Path:
    if source == "bundled":
        if not (BUNDLED_FOLDER / MANIFEST_NAME).is_file():
            raise PackageError(
                "this installation carries no bundled model; name a folder with a model package"
            )
        return BUNDLED_FOLDER
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        raise PackageError(
            f"{source!r} is no folder here, and a model of a hub becomes a package first: use "
            f"'bundled', or the folder that `python -m model convert {source} FOLDER` writes"
        )
    raise PackageError(
        f"there is no folder {str(source)!r}; use 'bundled' or a folder written by "
        "`python -m training export` or `python -m model convert`"
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise PackageError(
            f"{folder} has no {MANIFEST_NAME}, so it is no model package; "
            "make one with `python -m model convert` or `python -m training export`"
        ) from None
    except ValidationError as error:
        raise PackageError(
            f"{path} is not a manifest this version understands; export the model again. {error}"
        ) from error
