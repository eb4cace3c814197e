"""Kinds of hostile requests, and counts of their answers."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

MAX_PAUSE_S: Final = 0.02
# Examples kept of one defect; more are only counted.
MAX_EXAMPLES: Final = 3
# Sends one request within a limit in seconds and returns the status of the answer. A `TimeoutError`
# is a hang, a `ConnectionError` a connection that the server closed.
Send = Callable[[random.Random, float], str]


class Broken(Exception):
    """An answer that no request may get."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of hostile request.

    Attributes:
        kind: Name in the report.
        send: Sends one.
        allowed: The right statuses; `closed` can be one of them.
        limit_s: Seconds after which a missing answer, or end of the connection, is a hang.
    """

    kind: str
    send: Send
    allowed: frozenset[str]
    limit_s: float


def attacks(sends: Mapping[str, Send], allowed: frozenset[str], limit_s: float) -> list[Attack]:
    """Attacks with the same right answers, by kind."""
    return [Attack(kind, send, allowed, limit_s) for kind, send in sends.items()]


@dataclass(slots=True)
class Books:
    """Results of requests by kind; every method may be called from any thread."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    hangs: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[str]] = field(default_factory=dict)
    num_defects: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: str, seconds: float) -> None:
        """Count one answer."""
        with self._lock:
            self.statuses.setdefault(kind, Counter())[status] += 1
            self.seconds.setdefault(kind, []).append(seconds)

    def note_defect(self, name: str, example: str) -> None:
        """Count a wrong answer, with what is needed to repeat the request."""
        with self._lock:
            self.num_defects[name] += 1
            examples = self.defects.setdefault(name, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(example)

    def make(self, attack: Attack, seed: int) -> None:
        """Make one attack and judge its answer."""
        begun = time.monotonic()
        example = f"seed {seed}, at {datetime.now(UTC):%H:%M:%S}"
        try:
            status = attack.send(random.Random(seed), attack.limit_s)
        except TimeoutError:
            status = "hang"
        except ConnectionError:
            status = "closed"
        except Broken as error:
            status = "broken"
            self.note_defect(f"{attack.kind}: {error}", example)
        seconds = time.monotonic() - begun
        self.note(attack.kind, status, seconds)
        if status == "hang" or seconds > attack.limit_s:
            with self._lock:
                self.hangs[attack.kind] += 1
            self.note_defect(f"{attack.kind}: hang", f"{example}, {seconds:.1f} s")
        elif status not in {*attack.allowed, "broken"}:
            self.note_defect(f"{attack.kind}: {status}", example)


def attack_until(stop: threading.Event, kinds: Sequence[Attack], books: Books, seed: int) -> None:
    """Make these attacks in random order until `stop` is set."""
    rng = random.Random(seed)
    while not stop.is_set():
        books.make(rng.choice(kinds), rng.getrandbits(48))
        stop.wait(rng.uniform(0.0, MAX_PAUSE_S))
