"""Download the files of a checkpoint from the Hugging Face hub, at one commit.

`huggingface_hub` reads its usual variables: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME.
"""

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from model.conversion.cache import COMMIT
from model.conversion.errors import DOWNLOADING, HubError, HubUnreachableError, require
from model.conversion.source import HubSource
from model.package import Progress

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Safetensors only: no pickles, no code, no copies of the weights for other frameworks.
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
# Interval of progress lines.
EVERY_S: Final = 10.0


def ask_commit(source: HubSource) -> str:
    """Ask the hub for the commit of a revision.

    Raises:
        HubUnreachableError: The hub does not answer.
        HubError: There is no such repository or revision, or this user has no access.
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
    """The commit in the local cache of the hub; None if it is not complete there."""
    try:
        folder = _library().snapshot_download(
            source.repository,
            revision=source.revision,
            allow_patterns=list(FILES),
            local_files_only=True,
        )
    except Exception:  # incomplete for any reason
        return None
    return Path(folder).name if _has_weights(Path(folder)) else None


def fetch(source: HubSource, progress: Progress) -> Path:
    """Download the missing files of a revision.

    Returns:
        The folder of the files, named by the commit.

    Raises:
        HubUnreachableError: The hub does not answer, or the connection broke.
        HubError: There is no such repository or revision, this user has no access, it has no
            safetensors, or the disk is full.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub = _library()
    progress(f"downloading {source}")
    try:
        folder = Path(
            hub.snapshot_download(
                source.repository,
                revision=source.revision,
                allow_patterns=list(FILES),
                tqdm_class=progress_bar(progress, of=source.repository),
            )
        )
    except Exception as error:
        raise explain(error, source) from error
    if not _has_weights(folder):
        raise HubError(
            f"{source} has no config.json and safetensors; weights are read from safetensors only, "
            "never from pickles"
        )
    return folder


def progress_bar(
    progress: Callable[[str], None], *, of: str, clock: Callable[[], float] = time.monotonic
) -> type[Any]:
    """Make a progress bar class for `huggingface_hub` that reports lines now and then.

    Args:
        progress: Called with the amount so far.
        of: Name of what is downloaded.
        clock: Gives the time in seconds.
    """
    from tqdm import tqdm  # noqa: PLC0415 - an extra

    class ProgressLines(tqdm):  # type: ignore[misc]
        """Counts as its base does, and draws nothing."""

        said_at = clock()

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            """Report the amount, if it counts bytes and the last report is old enough."""
            now = clock()
            if self.unit == "B" and self.total and now - ProgressLines.said_at >= EVERY_S:
                ProgressLines.said_at = now
                progress(f"downloaded {self.n / 1e6:.0f} of {self.total / 1e6:.0f} MB of {of}")

    return ProgressLines


def explain(error: Exception, source: HubSource) -> HubError:
    """Convert an error of `huggingface_hub`."""
    from huggingface_hub import constants, errors  # noqa: PLC0415 - an extra, and slow to import

    name, endpoint = source.repository, constants.ENDPOINT
    # In this order: the first two are subclasses of the last.
    refusals: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"{name} is gated: request access on {endpoint}/{name}, and set HF_TOKEN to a token of "
            "that account",
        ),
        (
            errors.RepositoryNotFoundError,
            f"{endpoint} has no repository {name!r}, and there is no folder of that name here; "
            "check the spelling, and set HF_TOKEN if the repository is private",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name} has no revision {source.revision!r}; check the name of the revision",
        ),
    ]
    for kind, text in refusals:
        if isinstance(error, kind):
            return HubError(text)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status not in {401, 403}:
            return HubUnreachableError(f"{endpoint} answered {status} for {name}; try again later")
        return HubError(
            f"{endpoint} refuses {name} to this user (status {status}); set HF_TOKEN to a token "
            "with read access"
        )
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return HubError(
            f"the disk of {constants.HF_HUB_CACHE} is too full for {name}; free space, or set "
            "HF_HOME to a folder on another disk"
        )
    if constants.HF_HUB_OFFLINE:
        return HubUnreachableError(
            f"{source} is not complete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
            "download it; unset the variable, or download it on a machine with a network"
        )
    return HubUnreachableError(
        f"{name} could not be downloaded from {endpoint} ({type(error).__name__}); check the "
        "network and HF_ENDPOINT, and start again: complete files are not downloaded again"
    )


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _library() -> Any:
    require(DOWNLOADING, purpose="downloading from the hub")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub  # noqa: PLC0415 - an extra, and slow to import

    return huggingface_hub
