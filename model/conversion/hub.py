"""Fetches a checkpoint from the Hugging Face Hub: the files that are needed, at one commit.

`huggingface_hub` does the work and is imported when it is asked for. Where it looks is its own
affair: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and the rest hold as everywhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.conversion.cache import COMMIT, Progress
from model.conversion.download_progress import progress_bar
from model.conversion.errors import DOWNLOADING, HubError, require
from model.conversion.hub_errors import explain
from model.conversion.source import HubSource

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
