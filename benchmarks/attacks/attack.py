"""What an attack is, and the books that are kept of many: answers, hangs, defects."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

MAX_PAUSE_S: Final = 0.02
# Of one defect; the rest are only counted.
MAX_EXAMPLES: Final = 3

Send = Callable[[random.Random], str]


class Broken(Exception):
    """The answer is one that no request may get, whatever it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to be a nuisance.

    Attributes:
        kind: Its name in the report.
        send: Does it once and returns the status of the answer. A `TimeoutError` is a hang, a
            `ConnectionError` a connection that the server closed.
        allowed: The statuses that are right answers to it; `closed` is one of them or not.
        limit_s: Seconds after which an answer, or the end of the connection, counts as a hang.
    """

    kind: str
    send: Send
    allowed: frozenset[str]
    limit_s: float


@dataclass(slots=True)
class Books:
    """Counts of what came of the attacks; every method may be called from any thread."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    slowest_s: dict[str, float] = field(default_factory=dict)
    hangs: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[str]] = field(default_factory=dict)
    num_defects: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_attacks(self) -> int:
        """All attacks that ended."""
        with self._lock:
            return sum(counts.total() for counts in self.statuses.values())

    def note(self, kind: str, status: str, seconds: float, *, number: int = 1) -> None:
        """Count one answer, or so many, of which the slowest took so long."""
        with self._lock:
            self.statuses.setdefault(kind, Counter())[status] += number
            self.slowest_s[kind] = max(self.slowest_s.get(kind, 0.0), seconds)

    def note_defect(self, name: str, example: str) -> None:
        """Count an answer that should not be, with what is needed to ask again."""
        with self._lock:
            self.num_defects[name] += 1
            examples = self.defects.setdefault(name, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(example)

    def make(self, attack: Attack, seed: int) -> None:
        """Do one attack, and judge what came of it."""
        begun = time.monotonic()
        try:
            status = attack.send(random.Random(seed))
        except TimeoutError:
            status = "hang"
        except ConnectionError:
            status = "closed"
        except Broken as error:
            status = "broken"
            self.note_defect(
                f"{attack.kind}: {error}", f"seed {seed}, at {datetime.now(UTC):%H:%M:%S}"
            )
        seconds = time.monotonic() - begun
        self.note(attack.kind, status, seconds)
        if status == "hang" or seconds > attack.limit_s:
            with self._lock:
                self.hangs[attack.kind] += 1
            self.note_defect(f"{attack.kind}: hang", f"seed {seed}, {seconds:.1f} s")
        elif status not in attack.allowed and status != "broken":
            self.note_defect(f"{attack.kind}: {status}", f"seed {seed}")


def attack_until(stop: threading.Event, attacks: Sequence[Attack], books: Books, seed: int) -> None:
    """Make these attacks in random order until told to stop."""
    rng = random.Random(seed)
    while not stop.is_set():
        books.make(rng.choice(attacks), rng.getrandbits(48))
        stop.wait(rng.uniform(0.0, MAX_PAUSE_S))
