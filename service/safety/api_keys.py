"""API keys from the environment and from a file that is read again when it changes.

Keys are kept as digests only and compared in constant time. A key is never logged.
"""

import hmac
import logging
import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from service.call import Clock
from service.errors import Unauthenticated
from service.monitoring.metrics import Metrics
from service.safety.tls import FileWatch

MIN_KEY_CHARS: Final = 16
MAX_KEY_CHARS: Final = 512
HOW_TO: Final = "Send it as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`."
BEARER: Final = "bearer "

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys for all routes and RPCs except the open ones. Thread-safe."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        fixed: str | None = None,
        file: Path | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Read all keys once.

        Args:
            metrics: Counts refused requests.
            fixed: Keys, separated by commas.
            file: One key per line; blank lines and lines that begin with `#` are ignored.
            clock: Decides when to look at the file again.

        Raises:
            ValueError: A key is invalid, or a source holds no key.
            OSError: The file cannot be read.
        """
        self._metrics = metrics
        self._file = file
        self.is_required = fixed is not None or file is not None
        named = [] if fixed is None else [key.strip() for key in fixed.split(",")]
        self._fixed = () if fixed is None else _digests([k for k in named if k], "api_keys")
        self._watch = FileWatch([] if file is None else [file], clock=clock)
        self._filed = () if file is None else _read(file)

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Check the key of a request, in either of two headers.

        Args:
            authorization: The value of `Authorization`.
            api_key: The value of `X-Api-Key`.

        Raises:
            Unauthenticated: Neither holds a known key.
        """
        if not self.is_required:
            return
        shown = [] if api_key is None else [api_key]
        if authorization is not None and authorization[: len(BEARER)].lower() == BEARER:
            shown.append(authorization[len(BEARER) :].strip())
        known = self._known()
        if any([_is_known(key, known) for key in shown]):
            return
        self._metrics.rejected.labels("unauthenticated").inc()
        if shown:
            raise Unauthenticated(f"The API key is unknown. {HOW_TO}")
        raise Unauthenticated(f"An API key is needed. {HOW_TO}", code="missing_api_key")

    def _known(self) -> tuple[bytes, ...]:
        """All digests. If the file has become invalid, its last keys stay in use."""
        if self._file is not None and self._watch.has_changed():
            try:
                self._filed = _read(self._file)
                logger.info("read the API keys again", extra={"fields": {"keys": len(self._filed)}})
            except (OSError, ValueError) as error:
                logger.error("the API keys were not changed: %s", error)
        return self._fixed + self._filed


def _is_known(shown: str, known: Iterable[bytes]) -> bool:
    """Compare with every key, so that the time does not depend on the match."""
    digest = _digest(shown)
    found = False
    for other in known:
        found |= hmac.compare_digest(digest, other)
    return found


def _read(file: Path) -> tuple[bytes, ...]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="ascii").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{file}: keys must be ASCII") from None
    return _digests([line for line in lines if line and not line.startswith("#")], str(file))


def _digests(keys: Sequence[str], where: str) -> tuple[bytes, ...]:
    if not keys:
        raise ValueError(
            f"{where} holds no API key; write one a line (openssl rand -hex 32), "
            "or unset the setting to accept requests without a key"
        )
    for number, key in enumerate(keys, start=1):
        is_plain = key.isascii() and key.isprintable() and " " not in key
        if not (is_plain and MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS):
            raise ValueError(
                f"API key number {number} of {where} is invalid: a key has {MIN_KEY_CHARS} to "
                f"{MAX_KEY_CHARS} printable ASCII characters without spaces"
            )
    return tuple(map(_digest, keys))


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
