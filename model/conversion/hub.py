"""Download model files from the Hugging Face hub."""

import errno
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.conversion.cache import COMMIT, Progress
from model.conversion.errors import DOWNLOADING, HubError, HubUnreachableError, require
from model.conversion.source import HubSource

# What `huggingface_hub` raises, as sentences for whoever started the program.

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def explain(error: Exception, source: HubSource) -> HubError:
    """The library's error as one of ours."""
    from huggingface_hub import constants, errors  # noqa: PLC0415 - an extra, and slow to import

    name, endpoint = source.repository, constants.ENDPOINT
    # In this order: the first are kinds of the last.
    refusals: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"{name} is given to those only who have been let in: ask for access on "
            f"{endpoint}/{name}, and set HF_TOKEN to a token of that account",
        ),
        (
            errors.RepositoryNotFoundError,
            f"{endpoint} has no repository {name!r}, and there is no folder of that name here; "
            "check the spelling, and set HF_TOKEN if the repository is private",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name} has no revision {source.revision!r}; name one that it has",
        ),
    ]
    for kind, text in refusals:
        if isinstance(error, kind):
            return HubError(text)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _status(error.response.status_code, name, endpoint)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return HubError(
            f"there is no room for {name} in {constants.HF_HUB_CACHE}; make room, or set HF_HOME "
            "to a folder on another disk"
        )
    if constants.HF_HUB_OFFLINE:
        return HubUnreachableError(
            f"HF_HUB_OFFLINE forbids to ask for {source}, which is not whole in "
            f"{constants.HF_HUB_CACHE}; download it where there is a network, or unset the variable"
        )
    return HubUnreachableError(
        f"{name} could not be had from {endpoint} ({type(error).__name__}); check the network and "
        "HF_ENDPOINT, and start again: files that came whole are not downloaded again"
    )


def _status(status: int, name: str, endpoint: str) -> HubError:
    if status in {401, 403}:
        return HubError(
            f"{endpoint} does not give {name} to this user (status {status}); set HF_TOKEN to a "
            "token that may read it"
        )
    return HubUnreachableError(f"{endpoint} answered {status} for {name}; try again later")


# Tells of a download in lines, a few in a minute, in the place of a bar.

EVERY_S: Final = 10.0


def progress_bar(
    progress: Callable[[str], None], *, of: str, clock: Callable[[], float] = time.monotonic
) -> type[Any]:
    """A class that `huggingface_hub` takes for its bars, and that speaks now and then.

    Args:
        progress: Told what has come so far.
        of: What is downloaded.
        clock: In seconds.
    """
    from tqdm import tqdm  # noqa: PLC0415 - an extra

    class ProgressLines(tqdm):  # type: ignore[misc]
        """Counts like its base, draws nothing."""

        said_at = clock()

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            """Say how far it is, if it is bytes that are counted and a while has passed."""
            now = clock()
            if self.unit == "B" and self.total and now - ProgressLines.said_at >= EVERY_S:
                ProgressLines.said_at = now
                progress(f"downloaded {self.n / 1e6:.0f} of {self.total / 1e6:.0f} MB of {of}")

    return ProgressLines


# Fetches a checkpoint from the Hugging Face Hub: the files that are needed, at one commit.
#
# `huggingface_hub` does the work and is imported when it is asked for. Where it looks is its own
# affair: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and the rest hold as everywhere.

# Weights as safetensors only: no pickle, no code, no other framework's copy of the same weights.
FILES: Final = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE",
)
ASK_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A repository's files at one commit."""

    folder: Path
    commit: str


def ask_commit(source: HubSource) -> str:
    """The commit that a revision is now.

    Raises:
        HubUnreachableError: Nobody answers.
        HubError: There is no such repository or revision, or it is not for this user.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    if COMMIT.fullmatch(source.revision):
        return source.revision
    hub = _library()
    try:
        info = hub.HfApi().repo_info(
            source.repository, revision=source.revision, timeout=ASK_LIMIT_S
        )
    except Exception as error:
        raise explain(error, source) from error
    return str(info.sha)


def downloaded_commit(source: HubSource) -> str | None:
    """The commit of what was downloaded before, by whatever program; None where nothing was."""
    try:
        folder = _library().snapshot_download(
            source.repository,
            revision=source.revision,
            allow_patterns=list(FILES),
            local_files_only=True,
        )
    except Exception:  # whatever keeps it from being whole
        return None
    return Path(folder).name if _has_weights(Path(folder)) else None


def fetch(source: HubSource, progress: Progress) -> Fetched:
    """Download what is needed, and not yet there, of a revision.

    Raises:
        HubUnreachableError: Nobody answers, or the connection broke.
        HubError: There is no such repository or revision, it is not for this user, it has no
            safetensors, or the disk is full.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub = _library()
    progress(f"downloading {source}")
    try:
        folder = hub.snapshot_download(
            source.repository,
            revision=source.revision,
            allow_patterns=list(FILES),
            tqdm_class=progress_bar(progress, of=source.repository),
        )
    except Exception as error:
        raise explain(error, source) from error
    fetched = Fetched(Path(folder), Path(folder).name)
    if not _has_weights(fetched.folder):
        raise HubError(
            f"{source} has no config.json with safetensors beside it; weights are read as "
            "safetensors only, never as pickles"
        )
    return fetched


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _library() -> Any:
    require(DOWNLOADING, purpose="downloading from the hub")
    import huggingface_hub  # noqa: PLC0415 - an extra, and slow to import

    return huggingface_hub
