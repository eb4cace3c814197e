"""API keys from the environment and from a file that is read again when it changes.

Keys are kept as digests only and compared in constant time. A key is never logged. A key of the
file may belong to a caller with a name, whose requests are counted and may be limited.
"""

import hmac
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

from service.call import Call, Clock
from service.errors import Overloaded, Unauthenticated
from service.monitoring.metrics import Metrics
from service.safety.reloading import Reloaded

KEY: Final = re.compile(r"[!-~]{16,512}")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
HOW_TO: Final = "Send it as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`."
BEARER: Final = "bearer "
# What keys without a name are called.
UNNAMED: Final = "unnamed"
# Each is a label of series.
MAX_CALLERS: Final = 100
OPTIONS: Final = ("name", "requests_per_s", "requests_at_once")
BUSY_RETRY_S: Final = 1.0


@dataclass(slots=True)
class Caller:
    """The owner of keys, and its requests; several keys may have one, as while they are renewed.

    Attributes:
        name: Label of its metrics; `UNNAMED` for all keys without a name.
        requests_per_s: Most requests a second, of which one second's may come at once.
        requests_at_once: Most requests in progress.
    """

    name: str = UNNAMED
    requests_per_s: float = math.inf
    requests_at_once: float = math.inf
    running: int = field(default=0, compare=False)
    # When all requests so far would be over if they came evenly, at the rate.
    due: float = field(default=0.0, compare=False)

    def take(self, now: float, num_workers: int) -> None:
        """Begin a request; each of several processes has its share of both limits.

        Raises:
            Overloaded: A limit is reached.
        """
        divided = f", divided among {num_workers} processes" if num_workers > 1 else ""
        rate = self.requests_per_s / num_workers
        due = max(now, self.due)
        # One second's requests may come at once.
        wait_s = due - now - (1 - 1 / max(1.0, rate))
        if wait_s > 0:
            raise Overloaded(
                f"The key may send {self.requests_per_s:g} requests a second{divided}.",
                code="key_rate_exceeded",
                retry_after_s=wait_s,
            )
        if self.running + 1 > self.requests_at_once / num_workers:
            raise Overloaded(
                f"The key may have {self.requests_at_once} requests in progress{divided}.",
                code="key_busy",
                retry_after_s=BUSY_RETRY_S,
            )
        self.running += 1
        self.due = due + 1 / rate


# A digest, and the owner of the key.
Key = tuple[bytes, Caller]


class ApiKeys:
    """The keys for all routes and RPCs except the open ones. Thread-safe.

    Args:
        metrics: Counts refused requests.
        fixed: Keys, separated by commas.
        file: One key per line, optionally with `name=`, `requests_per_s=` and
            `requests_at_once=`; blank lines and lines that begin with `#` are ignored.
        clock: Decides when to look at the file again.
        num_workers: Processes among which the limits of callers are divided.

    Raises:
        ValueError: A key is invalid or has two names, the file cannot be read, or a source holds
            no key.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        fixed: str | None = None,
        file: Path | None = None,
        clock: Clock = time.monotonic,
        num_workers: int = 1,
    ) -> None:
        self._metrics, self._clock, self._num_workers = metrics, clock, num_workers
        self._lock = threading.Lock()
        self.is_required = fixed is not None or file is not None
        self._fixed: list[Key] = []
        if fixed is not None:
            self._fixed = self._parsed(fixed.split(","), "api_keys")
        self._filed: Callable[[], list[Key]] = list
        if file is not None:
            parse = partial(self._parse_file, f"api_keys_file {file}")
            try:
                self._filed = Reloaded("the API keys", [file], parse, clock=clock).current
            except OSError as error:
                raise ValueError(
                    f"api_keys_file: {error}; write one key a line to that file "
                    "(openssl rand -hex 32), or name another"
                ) from error

    def enter(
        self, authorization: str | None, api_key: str | None, call: Call | None = None
    ) -> Callable[[], None]:
        """Check the key of a request, in either of two headers; call the result at its end.

        Args:
            authorization: The value of `Authorization`.
            api_key: The value of `X-Api-Key`.
            call: Of the request; gets the name and the digest of the key.

        Raises:
            Unauthenticated: Neither holds a known key.
            Overloaded: A limit of the key's caller is reached.
        """
        if not self.is_required:
            return lambda: None
        shown = [] if api_key is None else [api_key]
        if authorization is not None and authorization[: len(BEARER)].lower() == BEARER:
            shown.append(authorization[len(BEARER) :].strip())
        digests = [_digest(key) for key in shown]
        # All are compared, so that the time does not depend on the match.
        found = [
            (known, caller)
            for known, caller in (*self._fixed, *self._filed())
            for digest in digests
            if hmac.compare_digest(digest, known)
        ]
        if found:
            digest, caller = found[-1]
            if call is not None:
                call.key_name, call.key_digest = caller.name, digest
            return self._take(caller)
        self._metrics.rejected.labels("unauthenticated").inc()
        if shown:
            raise Unauthenticated(f"The API key is unknown. {HOW_TO}")
        raise Unauthenticated(f"An API key is needed. {HOW_TO}", code="missing_api_key")

    def _take(self, caller: Caller) -> Callable[[], None]:
        try:
            with self._lock:
                caller.take(self._clock(), self._num_workers)
        except Overloaded as error:
            outcome = "too_fast" if error.code == "key_rate_exceeded" else "too_many_at_once"
            self._metrics.caller_requests.labels(caller.name, outcome).inc()
            self._metrics.rejected.labels("caller_limit").inc()
            raise
        self._metrics.caller_requests.labels(caller.name, "accepted").inc()
        return partial(self._release, caller)

    def _release(self, caller: Caller) -> None:
        with self._lock:
            caller.running -= 1

    def _parse_file(self, where: str, contents: Sequence[bytes]) -> list[Key]:
        # Not ASCII is no key.
        lines = contents[0].decode("ascii", "replace").splitlines()
        return self._parsed([line for line in lines if not line.lstrip().startswith("#")], where)

    def _parsed(self, lines: Sequence[str], where: str) -> list[Key]:
        found: list[Key] = []
        callers: dict[str, Caller] = {}
        names = {digest: caller.name for digest, caller in self._fixed}
        for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
            try:
                digest, caller = _parse(line, self._num_workers)
                if callers.setdefault(caller.name, caller) != caller:
                    raise ValueError(
                        f"{caller.name} has other limits before; keys of one name share them"
                    )
                other = names.setdefault(digest, caller.name)
                if other != caller.name:
                    raise ValueError(f"the key is also that of {other}; keep one of the two")
            except ValueError as error:
                raise ValueError(f"API key number {number} of {where}: {error}") from None
            found.append((digest, callers[caller.name]))
        if not found:
            raise ValueError(
                f"{where} holds no API key; write one a line (openssl rand -hex 32), "
                "or unset the setting to accept requests without a key"
            )
        if len(callers) > MAX_CALLERS:
            raise ValueError(f"{where} has {len(callers)} names, at most {MAX_CALLERS} are allowed")
        return found


def _parse(line: str, num_workers: int) -> Key:
    """A key with the options behind it. No message holds what may be a part of a key."""
    key, *words = line.split()
    if not KEY.fullmatch(key):
        raise ValueError("a key has 16 to 512 printable ASCII characters without spaces")
    given = dict(word.partition("=")[::2] for word in words)
    if not given.keys() <= set(OPTIONS) or len(given) < len(words):
        raise ValueError(f"after the key write only {', '.join(f'{n}=...' for n in OPTIONS)}, once")
    if given and not NAME.fullmatch(given.get("name", "")):
        raise ValueError(
            "a name has up to 40 lower-case letters, digits, - and _, and limits need a name"
        )
    caller = Caller(given.pop("name", UNNAMED))
    try:
        for name, text in given.items():
            limit = int(text) if name == "requests_at_once" else float(text)
            if not 0 < limit < math.inf:
                raise ValueError
            setattr(caller, name, limit)
    except ValueError:
        raise ValueError("requests_per_s and requests_at_once are numbers above 0") from None
    if caller.requests_at_once < num_workers:
        raise ValueError(
            f"requests_at_once of {caller.name} is divided among {num_workers} workers, so it must "
            f"be at least {num_workers}"
        )
    return _digest(key), caller


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
