"""Model names as users write them, and the identity of a model's files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.conversion.errors import SourceError
from model.manifest import MANIFEST_NAME, MODEL_NAME
from model.package import BUNDLED

DENSE_SUFFIX: Final = "-dpt"
DENSE_TYPE: Final = "tipsv2_dpt"
# A training run has this file beside the folder `model`.
RUN_RECORD: Final = "run.json"
DEFAULT_REVISION: Final = "main"
HUB_ID: Final = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII
)
# Names under which models are served.
SERVED_NAME: Final = re.compile(MODEL_NAME)
NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model package: its folder, or `bundled` or `bundled-student`."""

    folder: str


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A checkpoint's folder on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the served model: that of the folder, or of the run whose `model` it is."""
        folder = self.path.resolve()
        is_of_run = folder.name == "model" and (folder.parent / RUN_RECORD).is_file()
        return model_name(folder.parent.name if is_of_run else folder.name)

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

    def __str__(self) -> str:
        if self.revision == DEFAULT_REVISION:
            return self.repository
        return f"{self.repository}@{self.revision}"


CheckpointSource = FolderSource | HubSource


def model_name(text: str) -> str:
    """Replace the characters that a model's name cannot have."""
    return NO_NAME.sub("-", text).strip("-._") or "model"


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """A model and the dense heads that were trained on it: `base+heads`."""

    base: CheckpointSource
    heads: CheckpointSource

    @property
    def name(self) -> str:
        """Name of the served model: that of heads called as released, otherwise the model's."""
        has_suffix = self.heads.name.endswith(DENSE_SUFFIX)
        return self.heads.name if has_suffix else self.base.name

    def __str__(self) -> str:
        return f"{self.base}+{self.heads}"


def split_models(text: str) -> tuple[str, ...]:
    """Split a list of models as `--model` has it: `student,b=/models/b`; ValueError if empty."""
    models = tuple(model.strip() for model in text.split(","))
    if not all(models):
        raise ValueError("give at least one model, and no empty name between commas")
    return models


def split_name(model: str) -> tuple[str | None, str]:
    """Split `name=source` into both; None without a name, or if a file is called so."""
    name, equals, source = model.partition("=")
    if equals and SERVED_NAME.fullmatch(name) and not Path(model).expanduser().exists():
        return name, source
    return None, model


def parse_source(
    text: str, *, may_extend: bool = False
) -> PackageSource | CheckpointSource | JoinedSource:
    """Parse the name of a model. A folder on this machine takes precedence over the hub.

    Dense heads whose name ends in -dpt come with the model beside them: `google/tipsv2-b14-dpt`
    with `google/tipsv2-b14`, the folder `x-dpt` with the folder `x`.

    Args:
        text: `bundled`, `bundled-student`, a folder, `owner/name`, optionally with `@revision`, or
            `base+heads`.
        may_extend: Accept a package as the base of `base+heads`.

    Raises:
        SourceError: The name is none of these.
    """
    base, plus, heads = text.partition("+")
    if plus and not Path(text).expanduser().exists():
        if not base or not heads:
            raise SourceError(f"{text!r} lacks a part; write a model and dense heads as base+heads")
        model = parse_checkpoint(base, may_be_package=may_extend)
        if isinstance(model, JoinedSource):
            raise SourceError(f"{base} has dense heads already; remove +{heads}")
        return JoinedSource(model, _parse_one(heads))
    if text in BUNDLED:
        return PackageSource(text)
    source = _parse_one(text)
    if isinstance(source, FolderSource):
        return _folder(source.path)
    if source.repository.endswith(DENSE_SUFFIX):
        return JoinedSource(HubSource(source.repository.removesuffix(DENSE_SUFFIX)), source)
    return source


def parse_checkpoint(text: str, *, may_be_package: bool = False) -> CheckpointSource | JoinedSource:
    """Parse the name of a checkpoint, or of a package to add precisions to, if it may be.

    Raises:
        SourceError: There is no such source, or it is a package.
    """
    source = parse_source(text, may_extend=may_be_package)
    if not isinstance(source, PackageSource):
        return source
    if may_be_package:
        return FolderSource(BUNDLED.get(source.folder, Path(source.folder)))
    raise SourceError(
        f"{text!r} is a model package already; serve it, or add graphs to it with --precision"
    )


def _parse_one(text: str) -> CheckpointSource:
    """Parse the name of a folder or a repository.

    An id without a revision whose first part is a folder here counts as a mistyped path: asking the
    hub would tell it a local name, and might serve another's model.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderSource(path)
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


def _folder(path: Path) -> PackageSource | FolderSource | JoinedSource:
    if (path / MANIFEST_NAME).is_file():
        return PackageSource(str(path))
    if _holds_heads(path):
        return _with_model(path)
    if not (path / "config.json").is_file() and not any(path.glob("*.npz")):
        raise SourceError(
            f"{path} is not a model: a package has {MANIFEST_NAME}, a transformers folder "
            "config.json, the official checkpoints a pair of .npz files"
        )
    return FolderSource(path)


def _holds_heads(path: Path) -> bool:
    """Whether a folder holds dense heads."""
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the reader of the folder reports what is wrong
    return isinstance(settings, dict) and settings.get("model_type") == DENSE_TYPE


def _with_model(path: Path) -> JoinedSource:
    """Join a folder of dense heads with its model, the folder beside it without -dpt."""
    whole = path.absolute()
    beside = whole.with_name(whole.name.removesuffix(DENSE_SUFFIX))
    model = _folder(beside) if beside != whole and beside.is_dir() else None
    if not isinstance(model, FolderSource):
        raise SourceError(
            f"{path} holds dense heads without a checkpoint of their model; write MODEL+{path}, as "
            f"in google/tipsv2-b14+{path}, or put its folder beside them, as x beside x-dpt"
        )
    return JoinedSource(model, FolderSource(path))
