"""The model package: a folder with weights, graphs, tokenizer, and a manifest of their digests."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import ValidationError

from model.files import atomic_write, rename, sync_tree
from model.manifest import MANIFEST_NAME, TORCH_FILE, FileEntry, Manifest, check_file_name
from model.onnx_files import check_graph

# Called with a sentence about the current step of long work.
Progress = Callable[[str], None]

BUNDLED_FOLDER: Final = Path(__file__).parent / "bundled"
STUDENT_FOLDER: Final = Path(__file__).parent / "bundled_student"
# The models shipped with this program, by the names that open them. The first is the default.
BUNDLED: Final = {"bundled": BUNDLED_FOLDER, "bundled-student": STUDENT_FOLDER}
# A package is untrusted and opened by many libraries, so the whole folder is checked first: also
# files that the manifest does not list, and files that its graphs name.

# Suffixes of pickles, which can run code when they are loaded; weights are safetensors and ONNX.
PICKLES: Final = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# Unlisted files that are allowed, as no library loads them: from people, hubs and git.
HARMLESS: Final = frozenset({".md", ".txt"})
HARMLESS_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
# The bundled model's manifest has 125 kB. One of 50 MB took 667 MiB and 2.6 s of all callers.
MAX_MANIFEST_BYTES: Final = 4 * 2**20
ADVICE: Final = "copy the package again, or export it again"


class PackageError(ValueError):
    """A folder is not a usable model package; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A verified package: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists, such as `onnx/vision_model.onnx`.

        Raises:
            PackageError: The manifest does not list it, so nothing vouches for its content.
        """
        if name not in self.manifest.files:
            raise PackageError(
                f"model package {self.manifest.name!r} has no file {name!r}; export the model "
                "again, or choose another runtime or model"
            )
        return self.path / name


def open_package(source: str | Path, *, verify: bool = True) -> ModelPackage:
    """Open a model package and check it against its manifest.

    Args:
        source: "bundled" or "bundled-student" for a model shipped with this program, or a folder.
        verify: Compare the SHA-256 of every file. Without it only presence and lengths are checked.

    Returns:
        The package. Weights for torch may be missing, as in wheels; then its manifest omits them.

    Raises:
        PackageError: There is no such package, its manifest is malformed, a file is missing or is
            not what the manifest says, or something lies in the folder that should not.
    """
    folder = package_folder(source)
    manifest = _read_manifest(folder)
    if not os.path.lexists(folder / TORCH_FILE):
        files = {name: entry for name, entry in manifest.files.items() if name != TORCH_FILE}
        manifest = manifest.model_copy(update={"files": files})
    if not manifest.files:
        raise PackageError(f"{folder / MANIFEST_NAME} lists no files; export the model again")
    check_files(folder, manifest.files, verify=verify)
    return ModelPackage(path=folder, manifest=manifest)


def write_manifest(folder: Path, manifest_without_files: Manifest) -> ModelPackage:
    """Hash every file below a folder and write the manifest that lists them, in one step.

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
    """Refuse to write over what is no package: ValueError."""
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output / MANIFEST_NAME).is_file():
        raise ValueError(f"{output} exists and is no model package; choose another folder")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes the package `output` when the block ends without error.

    Raises:
        ValueError: `output` is not a package and not empty.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield staging
        # A server often runs as another user.
        for path in (staging, *staging.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        sync_tree(staging)
        _replace(output, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(output: Path, staging: Path) -> None:
    """Replace the old folder, which is kept until the new one has its name."""
    if not (output / MANIFEST_NAME).is_file():
        rename(staging, output)
        return
    retired = output.with_name(f".{output.name}.{os.getpid()}.retired")
    rename(output, retired)
    try:
        rename(staging, output)
    except OSError:
        rename(retired, output)
        raise
    shutil.rmtree(retired)


def package_folder(source: str | Path) -> Path:
    """The folder that a source names, see `open_package`; PackageError if there is none."""
    if source in BUNDLED:
        bundled = BUNDLED[str(source)]
        if not (bundled / MANIFEST_NAME).is_file():
            raise PackageError(f"this installation carries no model {source!r}; name a folder")
        return bundled
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    raise PackageError(
        f"there is no folder {str(source)!r}; use 'bundled' or a folder written by "
        "`python -m training export` or, for a model of a hub, `python -m model convert`"
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise PackageError(
            f"{folder} has no {MANIFEST_NAME}, so it is no model package; "
            "make one with `python -m model convert` or `python -m training export`"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PackageError(
            f"{path} has {path.stat().st_size} bytes, at most {MAX_MANIFEST_BYTES} are accepted"
        )
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(text: bytes, path: str | Path) -> Manifest:
    """Parse the manifest of a path or URL; PackageError if it is malformed."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise PackageError(
            f"{path} is not a manifest this version understands; export the model again. {error}"
        ) from error


def check_files(folder: Path, files: Mapping[str, FileEntry], *, verify: bool) -> None:
    """Check a folder against the files that a manifest lists; see `open_package`.

    Raises:
        PackageError: A file is missing, is not what the manifest says, lies outside of the folder,
            is a pickle, or is not listed although something could load it.
    """
    root = folder.resolve()
    for name in _names(folder):
        _check_name(folder, name, is_listed=name in files)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise PackageError(f"{folder} lacks {name!r}, which its manifest lists; {ADVICE}")
        if not path.resolve().is_relative_to(root):
            raise PackageError(
                f"{path} is a link that leads out of the package; copy the files in the place of "
                "links, as `cp -rL` does"
            )
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            told = f"{path} has {size_bytes} bytes, its manifest says {entry.size_bytes}"
            raise PackageError(f"{told}; {ADVICE}")
    for name, entry in files.items():
        if verify and sha256(folder / name) != entry.sha256:
            raise PackageError(
                f"{folder / name} is not the file its manifest describes (SHA-256); {ADVICE}"
            )
    # After the digests: an unverified graph is untrusted.
    for name in files:
        if name.endswith(".onnx"):
            _check_graph(folder, name, files)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> Iterator[str]:
    """Names of all files and links below the folder; links are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _check_name(folder: Path, name: str, *, is_listed: bool) -> None:
    path = PurePosixPath(name)
    if path.suffix.lower() in PICKLES:
        raise PackageError(
            f"{folder / name} may hold a pickle, which can run code; a model package has "
            "weights as safetensors and ONNX only: remove it"
        )
    is_hidden = any(part.startswith(".") for part in path.parts)
    is_harmless = is_hidden or path.suffix.lower() in HARMLESS or path.name in HARMLESS_NAMES
    if not (is_listed or is_harmless or name == MANIFEST_NAME):
        raise PackageError(f"{folder / name} is not in the manifest, so unverified: remove it")


def _check_graph(folder: Path, name: str, files: Mapping[str, FileEntry]) -> None:
    # Two values of four bits fit into a byte.
    max_values = 2 * sum(entry.size_bytes for entry in files.values())
    try:
        locations = check_graph(folder / name, max_values)
    except ValueError as error:
        raise PackageError(f"{error}; {ADVICE}") from error
    for location in sorted(locations):
        # Names in the manifest lie inside of the package.
        if (PurePosixPath(name).parent / location).as_posix() not in files:
            raise PackageError(
                f"{folder / name} keeps weights in {location!r}, which the manifest does not list; "
                "export the model again"
            )
