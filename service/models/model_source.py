"""Where a model comes from, and the name that it is served under.

The settings name packages, checkpoints' folders and models of the hub. A caller names packages
below one folder only, and hears of no path above it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from model.conversion.errors import SourceError
from model.conversion.source import FolderSource, HubSource, PackageSource, parse_source
from model.graphs import Precision
from model.manifest import MANIFEST_NAME
from model.package import BUNDLED_FOLDER, PackageError, open_package
from service.errors import InvalidRequest, ModelNotFound, Unavailable

# No absolute path, no `..`, nothing hidden; one or more folders deep.
PACKAGE_NAME: Final = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
MAX_NAME_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to be loaded.

    Attributes:
        folder: `bundled`, or a folder with a model package; with a cache also a checkpoint's
            folder, or a hub id.
        name: What it is served as; None leaves it to the package.
        cache: Where converted packages are kept; None where nothing may be converted.
        precisions: Of the graphs that a conversion writes beside those in fp32.
        is_background: Whether other models answer meanwhile, and should have the processors.
        cancelled: Set where nobody needs it any more, for a load that is under way.
    """

    folder: str
    name: str | None = None
    cache: Path | None = None
    precisions: tuple[Precision, ...] = ()
    is_background: bool = False
    cancelled: Event = field(default_factory=Event, compare=False)

    @classmethod
    def from_setting(
        cls, text: str, cache: Path, precisions: tuple[Precision, ...] = ()
    ) -> "ModelSource":
        """What `--model` names: a source, or `name=source`. What exists is no pair."""
        name, equals, folder = text.partition("=")
        if equals and MODEL_NAME.fullmatch(name) and not Path(text).expanduser().exists():
            return cls(folder, name, cache=cache, precisions=precisions)
        return cls(text, cache=cache, precisions=precisions)

    def checkpoint(self) -> FolderSource | HubSource | None:
        """What has to be converted first; None where it is a package.

        Raises:
            PackageError: The name leads to no model.
        """
        if self.cache is None:
            return None
        try:
            source = parse_source(self.folder)
        except SourceError as error:
            raise PackageError(str(error)) from error
        return None if isinstance(source, PackageSource) else source

    def served_name(self) -> str:
        """What it will be served as, known before anything is converted.

        Raises:
            PackageError: The name leads to no model, or to a broken package.
        """
        if self.name is not None:
            return self.name
        checkpoint = self.checkpoint()
        if checkpoint is not None:
            return checkpoint.name
        return open_package(self.folder, verify=False).manifest.name

    def check(self) -> None:
        """Called between the steps of a load.

        Raises:
            Unavailable: The server stops, and the load with it.
        """
        if self.cancelled.is_set():
            raise stopping()

    def without_paths(self, text: str) -> str:
        """A reason as a caller may read it: the package's own folder becomes its last name."""
        folder = BUNDLED_FOLDER if self.folder == "bundled" else Path(self.folder)
        text = text.replace(str(folder), folder.name)
        return text if self.cache is None else text.replace(str(self.cache), "the cache")


def check_names(sources: Iterable[ModelSource]) -> None:
    """Refuse two models of one name before hours may go into the second.

    Raises:
        ValueError: There are two; the message says how to name one of them anew.
        PackageError: One of them is no model.
    """
    places: dict[str, str] = {}
    for source in sources:
        name = source.served_name()
        if name in places:
            raise same_name(name, places[name], source.folder)
        places[name] = source.folder


def same_name(name: str, first: str, second: str) -> ValueError:
    """Two models would be served under one name."""
    return ValueError(
        f"{first} and {second} would both be served as {name!r}; give one of them another name, "
        f"as in --model {first},other={second}"
    )


def stopping() -> Unavailable:
    """Nothing is loaded by a server that stops."""
    return Unavailable("The server is stopping; try again.", retry_after_s=1.0)


def check_model_name(name: str) -> None:
    """Refuse what cannot be the name of a model.

    Raises:
        InvalidRequest: It is too long, or has other characters than letters, digits, `.`, `_`, `-`.
    """
    if len(name) > MAX_NAME_CHARS or not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(
            "A model's name has letters, digits, '.', '_' and '-', begins with a letter or digit, "
            f"and has at most {MAX_NAME_CHARS} characters.",
            param="name",
        )


def find_package(repository: Path | None, package: str) -> str:
    """The folder of a package below the repository, links resolved.

    Raises:
        InvalidRequest: There is no repository, or this is no name of a package in one.
        ModelNotFound: It has no package of that name.
    """
    if repository is None:
        raise InvalidRequest(
            "This server has no folder to load from; start it with --model-repository.",
            code="no_repository",
            param="parameters.package",
        )
    if len(package) > MAX_NAME_CHARS or not PACKAGE_NAME.fullmatch(package):
        raise InvalidRequest(
            "A package is named by its folder below the repository, such as 'student' or "
            "'students/second'.",
            param="parameters.package",
        )
    root = repository.resolve()
    folder = (root / package).resolve()
    if not _is_package(root, folder):
        raise ModelNotFound(
            f"The repository has no package {package!r}; POST /v2/repository/index lists them.",
            code="package_not_found",
            param="parameters.package",
        )
    return str(folder)


def list_packages(repository: Path | None) -> list[str]:
    """Names of the packages right below the repository."""
    if repository is None or not repository.is_dir():
        return []
    root = repository.resolve()
    folders = (path for path in root.iterdir() if PACKAGE_NAME.fullmatch(path.name))
    return sorted(path.name for path in folders if _is_package(root, path.resolve()))


def _is_package(root: Path, folder: Path) -> bool:
    return folder.is_relative_to(root) and (folder / MANIFEST_NAME).is_file()
