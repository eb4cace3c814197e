"""Prompts to text embeddings: cache, coalescing of equal prompts, tokenizing."""

import asyncio
import copy
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.text import TextTokenizer
from service.call import Call
from service.errors import Unavailable
from service.lanes.batching import Batcher
from service.lanes.work import Bucket, Completed, WorkItem
from service.lanes.worker import TEXT_OUTPUT
from service.monitoring.metrics import Metrics
from service.validation import blank_text

# Embeddings of prompts: those asked for lately are kept, and those under way are computed once.
#
# The key is the prompt after its template, which serves every template set. A prompt that is being
# computed is a flight: whoever asks for it meanwhile waits for the same one. A flight belongs to
# nobody, so it goes on while anybody waits and is dropped when nobody does. An error goes to all
# who wait and is not kept. Shape legend: D width.

Embedding = NDArray[np.float32]
# What a kept entry takes beside its text and its numbers: the array's object, a link and a slot.
ENTRY_OVERHEAD_BYTES: Final = 300


@dataclass(slots=True, eq=False)
class Wait:
    """What one caller waits for; `done` has its answer when all of it is there or one part failed.

    Changed under the cache's lock alone; read it once `done` has an answer.
    """

    done: "Future[None]" = field(default_factory=Future)
    embeddings: dict[str, Embedding] = field(default_factory=dict)
    completed: list[Completed] = field(default_factory=list)
    flights: "set[Flight]" = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Flight:
    """One prompt under way, and who waits for it. Changed under the cache's lock alone."""

    prompt: str
    waits: set[Wait] = field(default_factory=set)
    work: "Future[Completed] | None" = None
    is_over: bool = False


class TextCache:
    """A map from prompt to raw embedding [D], bounded in bytes. Thread-safe, on any event loop.

    The least recently used entry goes first; one that is larger than the bound is not kept.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._metrics = metrics
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Embedding] = OrderedDict()
        self._flights: dict[str, Flight] = {}
        self._lookups: Counter[str] = Counter()

    def find(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        """Those of the prompts that are known, each once; read-only."""
        wanted = dict.fromkeys(prompts)
        with self._lock:
            found = {p: self._entries[p] for p in wanted if p in self._entries}
            for prompt in found:
                self._entries.move_to_end(prompt)
            self._lookups["hit"] += len(found)
        self._metrics.text_cache_hits.inc(len(found))
        return found

    def join(self, prompts: Iterable[str]) -> tuple[Wait, list[Flight]]:
        """Wait for prompts, each once.

        Returns:
            The wait, to be given to `leave` in the end, and the flights that the caller must start
            by `launch` or end by `fail`: those that nobody had asked for.
        """
        wait, begun, num_found = Wait(), [], 0
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                if prompt in self._entries:
                    wait.embeddings[prompt] = self._entries[prompt]
                    self._entries.move_to_end(prompt)
                    num_found += 1
                    continue
                if prompt not in self._flights:
                    self._flights[prompt] = Flight(prompt)
                    begun.append(self._flights[prompt])
                self._flights[prompt].waits.add(wait)
                wait.flights.add(self._flights[prompt])
            num_joined = len(wait.flights) - len(begun)
            self._lookups.update(hit=num_found, coalesced=num_joined, miss=len(begun))
            if not wait.flights:
                wait.done.set_result(None)
        self._metrics.text_cache_hits.inc(num_found)
        self._metrics.text_cache_coalesced.inc(num_joined)
        self._metrics.text_cache_misses.inc(len(begun))
        return wait, begun

    def leave(self, wait: Wait) -> None:
        """Wait no longer; what nobody else waits for is not computed, unless a lane has it."""
        with self._lock:
            dropped = [f for f in wait.flights if f.waits == {wait}]
            for flight in wait.flights:
                flight.waits.discard(wait)
            wait.flights.clear()
            for flight in dropped:
                self._forget(flight)
        for flight in dropped:
            self._cancel(flight)

    def is_wanted(self, flight: Flight) -> bool:
        """Whether anybody waits for it."""
        return bool(flight.waits)

    def launch(self, flight: Flight, work: "Future[Completed]") -> None:
        """Tell what computes a flight; its result or error ends the flight."""
        with self._lock:
            flight.work = work
            is_wanted = bool(flight.waits)
        work.add_done_callback(partial(self._finish, flight))
        if not is_wanted:
            self._cancel(flight)

    def fail(self, flight: Flight, error: Exception) -> None:
        """End a flight by an error, which all who wait get."""
        self._end(flight, None, error)

    def __len__(self) -> int:
        return len(self._entries)

    def lookups(self) -> Mapping[str, int]:
        """How many prompts were found, how many were under way, how many had to be computed."""
        with self._lock:
            return dict(self._lookups)

    @property
    def num_bytes(self) -> int:
        """What the entries take."""
        return self._num_bytes

    def _cancel(self, flight: Flight) -> None:
        """Take back work that nobody waits for; what runs already may be joined again."""
        if flight.work is None or flight.work.cancel():
            return
        with self._lock:
            if not flight.is_over:
                self._flights.setdefault(flight.prompt, flight)

    def _finish(self, flight: Flight, work: "Future[Completed]") -> None:
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            self._end(flight, work.result(), None)
        elif isinstance(error, Exception):
            self._end(flight, None, error)

    def _end(self, flight: Flight, completed: Completed | None, error: Exception | None) -> None:
        with self._lock:
            flight.is_over = True
            self._forget(flight)
            if completed is not None:
                self._keep(flight.prompt, completed.outputs[TEXT_OUTPUT])
            waits = tuple(flight.waits)
            for wait in waits:
                flight.waits.discard(wait)
                wait.flights.discard(flight)
                if completed is not None:
                    wait.embeddings[flight.prompt] = completed.outputs[TEXT_OUTPUT]
                    wait.completed.append(completed)
            answered = [wait for wait in waits if error is not None or not wait.flights]
        for wait in answered:
            if error is not None:
                # At once and not when its caller wakes, so that its other prompts are not begun.
                self.leave(wait)
            _answer(wait.done, error)

    def _forget(self, flight: Flight) -> None:
        """Holds the lock."""
        if self._flights.get(flight.prompt) is flight:
            del self._flights[flight.prompt]

    def _keep(self, prompt: str, embedding: Embedding) -> None:
        """Holds the lock."""
        embedding.setflags(write=False)
        if _num_bytes(prompt, embedding) > self._max_bytes:
            return
        if prompt in self._entries:
            self._num_bytes -= _num_bytes(prompt, self._entries.pop(prompt))
        self._entries[prompt] = embedding
        self._num_bytes += _num_bytes(prompt, embedding)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _num_bytes(*self._entries.popitem(last=False))


def _num_bytes(prompt: str, embedding: Embedding) -> int:
    return sys.getsizeof(prompt) + embedding.nbytes + ENTRY_OVERHEAD_BYTES


def _answer(done: "Future[None]", error: Exception | None) -> None:
    with suppress(InvalidStateError):  # its caller has left
        if error is None:
            done.set_result(None)
            return
        # Each caller raises its own: tracebacks would grow together, on two loops at once.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        done.set_exception(own)


# Prompts in, embeddings out: from the cache, from another request's flight, or by the lanes.
#
# Shape legend: L tokens, D width.

# Texts share a batch when their lengths round up to the same multiple of this many tokens.
TOKENS_STEP: Final = 8
Embeddings = Mapping[str, Embedding]


class BlankPrompt(ValueError):
    """A prompt without a token; whoever waits for it says which of their fields it is."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.prompt = prompt


class TextEncoder:
    """The text side of one model. May be used from any event loop."""

    def __init__(self, tokenizer: TextTokenizer, batcher: Batcher, cache: TextCache) -> None:
        self._tokenizer = tokenizer
        self._batcher = batcher
        self._cache = cache

    def find(self, prompts: Iterable[str]) -> dict[str, Embedding]:
        """Raw embeddings [D] of those prompts that are in the cache."""
        return self._cache.find(prompts)

    def count_tokens(self, prompts: Iterable[str]) -> int:
        """Tokens that the model reads of prompts, each of which has one. CPU work."""
        return sum(self._tokenizer.encode([prompt]).token_ids_BL.shape[1] for prompt in prompts)

    def blank(self, prompts: Iterable[str]) -> set[str]:
        """Those prompts that have no token. CPU work."""
        return {prompt for prompt in prompts if not self._has_tokens(prompt)}

    def _has_tokens(self, prompt: str) -> bool:
        try:
            self._tokenizer.encode([prompt])
        except ValueError:
            return False
        return True

    async def encode(
        self, missing: Mapping[str, str], call: Call, pool: Executor
    ) -> tuple[Embeddings, list[Completed]]:
        """Raw embeddings [D] of prompts, each computed once for all who ask at the same time.

        Args:
            missing: Each prompt once, with the field that an error in it is about.
            call: Whose clock says how long it waited for work that others began.
            pool: Where texts are tokenised.

        Raises:
            InvalidRequest: A prompt has no token.
            ServiceError: The server stops, or a batch failed.
        """
        if not missing:
            return {}, []
        joined = call.clock()
        call.trace.enter_queue(joined)
        wait, begun = self._cache.join(missing)
        try:
            if begun:
                self._begin(begun, pool, call)
            await asyncio.wrap_future(wait.done)
        except BlankPrompt as error:
            param = missing[error.prompt]
            raise blank_text(param) from error
        finally:
            self._cache.leave(wait)
        waited_s = call.clock() - joined
        return wait.embeddings, [_as_waited(done, waited_s) for done in wait.completed]

    def _begin(self, flights: Sequence[Flight], pool: Executor, call: Call) -> None:
        """Start in the pool, so that whoever began a flight may leave without ending it."""
        try:
            pool.submit(self._compute, flights, call)
        except RuntimeError:
            stopping = Unavailable("The server is stopping; try again.", retry_after_s=1.0)
            for flight in flights:
                self._cache.fail(flight, stopping)

    def _compute(self, flights: Sequence[Flight], call: Call) -> None:
        """Tokenise and queue what is still waited for."""
        rows: dict[Flight, NDArray[np.int64]] = {}
        for flight in filter(self._cache.is_wanted, flights):
            try:
                rows[flight] = self._tokenizer.encode([flight.prompt]).token_ids_BL[0]
            except ValueError:
                self._cache.fail(flight, BlankPrompt(flight.prompt))
            except Exception as error:
                # Ours, and logged by each caller; the others' prompts are not to blame.
                self._cache.fail(flight, error)
        wanted = {flight: rows[flight] for flight in rows if self._cache.is_wanted(flight)}
        num_left = sum(not (f.is_over or self._cache.is_wanted(f)) for f in flights)
        self._batcher.queue.count_abandoned(num_left, call.deadline)
        # No deadline: callers come and go, and the last to leave takes the item back.
        items = [
            WorkItem(
                bucket=_text_bucket(row),
                cost=len(row),
                payload=row,
                priority=call.priority,
                flow=call.flow,
                trace=call.trace,
            )
            for row in wanted.values()
        ]
        try:
            work = self._batcher.submit(items)
        except Exception as error:
            for flight in wanted:
                self._cache.fail(flight, error)
            return
        for flight, future in zip(wanted, work, strict=True):
            self._cache.launch(flight, future)


def _text_bucket(row_L: NDArray[np.int64]) -> Bucket:
    return Bucket("text", (-(-len(row_L) // TOKENS_STEP) * TOKENS_STEP,))


def _as_waited(done: Completed, waited_s: float) -> Completed:
    """What this caller waited, where the work had begun before it came."""
    run_s = min(done.run_s, waited_s)
    return replace(done, queue_s=min(done.queue_s, waited_s - run_s), run_s=run_s)
