"""What `huggingface_hub` raises, as sentences for whoever started the program."""

import errno

from model.conversion.errors import HubError, HubUnreachableError
from model.conversion.source import HubSource

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
