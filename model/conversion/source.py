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
    """A model package, ready to be served: its folder, or `bundled`."""

    folder: str


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A checkpoint on this machine: a folder, or for dense heads also a file."""

    path: Path

    @property
    def name(self) -> str:
        """What it is served as: its folder's name."""
        return model_name(self.path.resolve().name)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub at a revision: a branch, a tag or a commit."""

    repository: str
    revision: str = DEFAULT_REVISION

    @property
    def name(self) -> str:
        """What it is served as: the last part of its id."""
        return model_name(self.repository.rpartition("/")[2])

    @property
    def base(self) -> "HubSource | None":
        """For a repository of dense heads the one of the model that they stand on."""
        if not self.repository.endswith(DENSE_SUFFIX):
            return None
        return HubSource(self.repository.removesuffix(DENSE_SUFFIX))

    def __str__(self) -> str:
        if self.revision == DEFAULT_REVISION:
            return self.repository
        return f"{self.repository}@{self.revision}"


CheckpointSource = FolderSource | HubSource


def parse_source(text: str) -> PackageSource | CheckpointSource:
    """Tell what a name stands for. What exists on this machine wins over the hub.

    Args:
        text: `bundled`, a folder, or `owner/name` with `@revision` behind it if wanted.

    Raises:
        SourceError: It is none of these.
    """
    path = Path(text).expanduser()
    if text == BUNDLED:
        return PackageSource(BUNDLED)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        raise SourceError(f"{text!r} is a file; name the folder that holds the model")
    hub = parse_hub_id(text)
    if hub is None:
        raise SourceError(
            f"there is no folder {text!r}, and it is no hub id either; use 'bundled', a folder "
            "with a model package or a checkpoint, or an id such as google/tipsv2-b14"
        )
    return hub


def parse_checkpoint(
    text: str, *, may_be_file: bool = False, may_be_package: bool = False
) -> CheckpointSource:
    """Tell what a name stands for that is to be converted.

    Args:
        text: As for `parse_source`.
        may_be_file: Whether a file will do, as it does for dense heads.
        may_be_package: Whether a package will do, as it does for further precisions of it.

    Raises:
        SourceError: It is nothing, or a package already.
    """
    path = Path(text).expanduser()
    if may_be_file and path.exists():
        return FolderSource(path)
    source = parse_source(text)
    if isinstance(source, PackageSource) and may_be_package:
        return FolderSource(BUNDLED_FOLDER if source.folder == BUNDLED else Path(source.folder))
    if isinstance(source, PackageSource):
        raise SourceError(
            f"{text!r} is a model package already; serve it as it is, or name what `convert` is to "
            "add, such as --precision int8"
        )
    return source


def parse_hub_id(text: str) -> HubSource | None:
    """The repository and revision of a hub id; None for any other text."""
    match = HUB_ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:
        return None
    return HubSource(match["id"], match["revision"] or DEFAULT_REVISION)


def model_name(text: str) -> str:
    """The nearest text that can be a model's name."""
    return NO_NAME.sub("-", text).strip("-._") or "model"


def _folder(path: Path) -> PackageSource | FolderSource:
    if (path / MANIFEST_NAME).is_file():
        return PackageSource(str(path))
    is_transformers = (path / "config.json").is_file()
    is_official = any(path.glob("*.npz"))
    if is_transformers and is_official:
        raise SourceError(
            f"{path} holds both a transformers checkpoint (config.json) and official .npz files; "
            "put one of them into a folder of its own, and name that"
        )
    if not is_transformers and not is_official:
        raise SourceError(
            f"{path} holds no model: a package has {MANIFEST_NAME}, a transformers folder "
            "config.json, the official checkpoints a pair of .npz files"
        )
    return FolderSource(path)
