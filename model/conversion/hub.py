"""Download the files of a checkpoint from the Hugging Face hub, at one commit.

`huggingface_hub` reads its usual variables: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME.
"""

import errno
import os
import re
from pathlib import Path
from typing import Any, Final

from model.conversion.errors import DOWNLOADING, HubError, HubUnreachableError, require
from model.conversion.source import HubSource
from model.package import Progress

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
CONFIG: Final = "config.json"
# Safetensors only: no pickles, no code, no copies of the weights for other frameworks.
FILES: Final = (
    CONFIG,
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
NO_WEIGHTS: Final = (
    "has no config.json and safetensors; weights are read from safetensors only, never from pickles"
)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
ASK_LIMIT_S: Final = 10.0


def find_commit(source: HubSource) -> str:
    """Find the commit of a revision: at the hub, or in its local cache if it does not answer.

    Raises:
        HubUnreachableError: The hub does not answer, and its cache does not have the revision.
        HubError: There is no such repository or revision, or this user has no access.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    if COMMIT.fullmatch(source.revision):
        return source.revision
    hub = _library()
    try:
        path = hub.hf_hub_download(
            source.repository, CONFIG, revision=source.revision, etag_timeout=ASK_LIMIT_S
        )
    except Exception as error:
        raise explain(error, source) from error
    # Such as models--google--tipsv2-b14/snapshots/COMMIT/config.json
    return Path(path).parent.name


def fetch(source: HubSource, progress: Progress) -> Path:
    """Download the missing files of a revision; returns their folder, named by the commit.

    Raises:
        HubUnreachableError: The hub does not answer, or the connection broke.
        HubError: There is no such revision or access, it has no safetensors, or the disk is full.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub = _library()
    progress(f"downloading {source}")
    try:
        folder = hub.snapshot_download(
            source.repository, revision=source.revision, allow_patterns=list(FILES)
        )
    except Exception as error:
        raise explain(error, source) from error
    if not any(Path(folder).glob("*.safetensors")):
        raise HubError(f"{source} {NO_WEIGHTS}")
    return Path(folder)


def explain(error: Exception, source: HubSource) -> HubError:
    """Convert an error of `huggingface_hub`."""
    from huggingface_hub import constants, errors  # noqa: PLC0415 - an extra, and slow to import

    name, endpoint = source.repository, constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub was not asked instead
    refusals: dict[type[Exception], str] = {
        errors.GatedRepoError: f"{name} is gated: request access on {endpoint}/{name}, and set "
        "HF_TOKEN to a token of that account",
        errors.RepositoryNotFoundError: f"{endpoint} has no repository {name!r}, and there is no "
        "folder of that name here; check the spelling, and set HF_TOKEN if it is private",
        errors.RevisionNotFoundError: f"{name} has no revision {source.revision!r}",
        errors.RemoteEntryNotFoundError: f"{source} {NO_WEIGHTS}",
    }
    for kind, text in refusals.items():
        if isinstance(error, kind):
            return HubError(text)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in {401, 403}:
            return HubError(f"{endpoint} refuses {name} (status {status}); set HF_TOKEN to a token")
        return HubUnreachableError(f"{endpoint} answered {status} for {name}; try again later")
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


def _library() -> Any:
    require(DOWNLOADING, purpose="asking the hub for a model that is not named with its commit")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub  # noqa: PLC0415 - an extra, and slow to import

    return huggingface_hub
