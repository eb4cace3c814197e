"""Model names as users write them, and the identity of a model's files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.conversion.errors import SourceError
from model.manifest import MANIFEST_NAME
from model.package import BUNDLED_FOLDER

BUNDLED: Final = "bundled"
DENSE_SUFFIX: Final = "-dpt"
DEFAULT_REVISION: Final = "main"
HUB_ID: Final = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII
)
NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model package: its folder, or `bundled`."""

    folder: str


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A checkpoint on this machine: a folder, or a file of dense heads."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the served model: that of the folder."""
        return model_name(self.path.resolve().name)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the hub at a branch, tag or commit."""

    repository: str
    revision: str = DEFAULT_REVISION

    @property
    def name(self) -> str:
        """Name of the served model: the last part of the id."""
        return model_name(self.repository.rpartition("/")[2])

    @property
    def base(self) -> "HubSource | None":
        """The model's repository, if this one holds dense heads; otherwise None."""
        if not self.repository.endswith(DENSE_SUFFIX):
            return None
        return HubSource(self.repository.removesuffix(DENSE_SUFFIX))

    def __str__(self) -> str:
        if self.revision == DEFAULT_REVISION:
            return self.repository
        return f"{self.repository}@{self.revision}"


CheckpointSource = FolderSource | HubSource


def parse_source(text: str) -> PackageSource | CheckpointSource:
    """Parse the name of a model. A folder on this machine takes precedence over the hub.

    An id without a revision whose first part is a folder here counts as a mistyped path: asking the
    hub would tell it a local name, and might serve another's model.

    Args:
        text: `bundled`, a folder, or `owner/name`, optionally with `@revision`.

    Raises:
        SourceError: The name is none of these.
    """
    path = Path(text).expanduser()
    if text == BUNDLED:
        return PackageSource(BUNDLED)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        raise SourceError(f"{text!r} is a file; name the folder that holds the model")
    match = HUB_ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:
        raise SourceError(
            f"there is no folder {text!r}, and it is not a hub id; use 'bundled', a folder "
            "with a model package or a checkpoint, or an id such as google/tipsv2-b14"
        )
    parent = path.parent
    if match["revision"] is None and parent.is_dir():
        raise SourceError(
            f"there is no folder {text!r}, although {str(parent)!r} is one; correct the path, or "
            f"write {text}@{DEFAULT_REVISION} for the hub's repository of this name"
        )
    return HubSource(match["id"], match["revision"] or DEFAULT_REVISION)


def parse_checkpoint(
    text: str, *, may_be_file: bool = False, may_be_package: bool = False
) -> CheckpointSource:
    """Parse the name of a checkpoint to convert.

    Args:
        text: As for `parse_source`.
        may_be_file: Accept a file, for dense heads.
        may_be_package: Accept a package, to add precisions to it.

    Raises:
        SourceError: There is no such source, or it is a package.
    """
    path = Path(text).expanduser()
    if may_be_file and path.exists():
        return FolderSource(path)
    source = parse_source(text)
    if isinstance(source, PackageSource) and may_be_package:
        return FolderSource(BUNDLED_FOLDER if source.folder == BUNDLED else Path(source.folder))
    if isinstance(source, PackageSource):
        raise SourceError(
            f"{text!r} is a model package already; serve it, or add graphs to it with --precision"
        )
    return source


def model_name(text: str) -> str:
    """Replace the characters that a model's name cannot have."""
    return NO_NAME.sub("-", text).strip("-._") or "model"


def _folder(path: Path) -> PackageSource | FolderSource:
    if (path / MANIFEST_NAME).is_file():
        return PackageSource(str(path))
    is_transformers = (path / "config.json").is_file()
    is_official = any(path.glob("*.npz"))
    if is_transformers and is_official:
        raise SourceError(
            f"{path} holds both a transformers checkpoint (config.json) and official .npz files; "
            "move one of them to another folder"
        )
    if not is_transformers and not is_official:
        raise SourceError(
            f"{path} is not a model: a package has {MANIFEST_NAME}, a transformers folder "
            "config.json, the official checkpoints a pair of .npz files"
        )
    return FolderSource(path)
