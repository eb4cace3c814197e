"""Prompts to text embeddings: a bounded cache, shared computation of equal prompts, tokenizing.

The key of the cache is the prompt after its template, so one entry serves every template set.
Concurrent requests for one prompt share one computation (singleflight). The computation continues
while at least one request waits for it, and is cancelled when none is left. An error is raised in
every waiting request and is not cached.

Shape legend: D width, L tokens.
"""

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
from service.errors import InvalidRequest
from service.lanes.batch_queue import stopping_error
from service.lanes.batching import Batcher
from service.lanes.lane import TEXT_OUTPUT
from service.lanes.work import Bucket, Completed, ItemFuture, WorkItem, record_batches
from service.messages import Truncation
from service.monitoring.metrics import Metrics
from service.validation import MAX_TEXT_CHARS, PromptGroup, blank_text

TextEmbedding = NDArray[np.float32]
TextEmbeddings = Mapping[str, TextEmbedding]
# Memory of a cache entry without its text and numbers: the array object, a link and a slot.
ENTRY_OVERHEAD_BYTES: Final = 300
# Texts share a batch if their lengths round up to the same multiple of this many tokens.
TOKENS_STEP: Final = 8
# Cost of a prompt in patches: about the tokens of a class name in a template. Texts are not
# tokenized before admission.
PROMPT_COST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts of all texts or classes of a request.

    Attributes:
        groups: The prompts of each text or class.
        cached: Raw embeddings [D] that were in the cache.
        missing: Each other prompt once, with the request field that an error in it names.
    """

    groups: Sequence[PromptGroup]
    cached: TextEmbeddings
    missing: Mapping[str, str]

    @property
    def cost(self) -> int:
        """Cost for admission, in patches."""
        return PROMPT_COST * len(self.missing)


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for prompts. Changed only under the lock of the cache.

    `done` has a result when all prompts are computed, or the first error.
    """

    done: "Future[None]" = field(default_factory=Future)
    embeddings: dict[str, TextEmbedding] = field(default_factory=dict)
    completed: list[Completed] = field(default_factory=list)
    in_flight: "set[InFlight]" = field(default_factory=set)


@dataclass(slots=True, eq=False)
class InFlight:
    """The computation of one prompt. Changed only under the lock of the cache."""

    prompt: str
    waiters: set[Waiter] = field(default_factory=set)
    work: ItemFuture | None = None
    is_over: bool = False


# About 19,000 embeddings of 768 numbers, for each model.
TEXT_CACHE_BYTES: Final = 64 * 1024 * 1024


class TextCache:
    """An LRU map from prompt to raw embedding [D], bounded in bytes, with singleflight.

    Thread-safe, on any event loop. An entry larger than the bound is not kept.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._metrics = metrics
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._in_flight: dict[str, InFlight] = {}
        self._lookups: Counter[str] = Counter()

    def find(self, prompts: Iterable[str]) -> dict[str, TextEmbedding]:
        """The cached embeddings of these prompts; read-only arrays."""
        wanted = dict.fromkeys(prompts)
        with self._lock:
            found = {p: self._entries[p] for p in wanted if p in self._entries}
            for prompt in found:
                self._entries.move_to_end(prompt)
            self._lookups["hit"] += len(found)
        self._metrics.text_cache_hits.inc(len(found))
        return found

    def join(self, prompts: Iterable[str]) -> tuple[Waiter, list[InFlight]]:
        """Wait for prompts.

        Returns:
            The waiter, to be given to `leave` at the end; and the computations that are new, which
            the caller must start by `launch` or end by `fail`.
        """
        waiter, begun, num_found = Waiter(), [], 0
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                if prompt in self._entries:
                    waiter.embeddings[prompt] = self._entries[prompt]
                    self._entries.move_to_end(prompt)
                    num_found += 1
                    continue
                if prompt not in self._in_flight:
                    self._in_flight[prompt] = InFlight(prompt)
                    begun.append(self._in_flight[prompt])
                self._in_flight[prompt].waiters.add(waiter)
                waiter.in_flight.add(self._in_flight[prompt])
            num_joined = len(waiter.in_flight) - len(begun)
            self._lookups.update(hit=num_found, coalesced=num_joined, miss=len(begun))
            if not waiter.in_flight:
                waiter.done.set_result(None)
        self._metrics.text_cache_hits.inc(num_found)
        self._metrics.text_cache_coalesced.inc(num_joined)
        self._metrics.text_cache_misses.inc(len(begun))
        return waiter, begun

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter, and cancel queued computations that have no other waiter."""
        with self._lock:
            dropped = [c for c in waiter.in_flight if c.waiters == {waiter}]
            for computation in waiter.in_flight:
                computation.waiters.discard(waiter)
            waiter.in_flight.clear()
            for computation in dropped:
                self._remove_in_flight(computation)
        for computation in dropped:
            self._cancel(computation)

    def is_wanted(self, computation: InFlight) -> bool:
        """Whether a request waits for this computation."""
        return bool(computation.waiters)

    def launch(self, computation: InFlight, work: ItemFuture) -> None:
        """Attach the queued work; its result or error ends the computation."""
        with self._lock:
            computation.work = work
            is_wanted = bool(computation.waiters)
        work.when_done(partial(self._finish, computation))
        if not is_wanted:
            self._cancel(computation)

    def fail(self, computation: InFlight, error: Exception) -> None:
        """End a computation by an error, which every waiter gets."""
        self._end(computation, None, error)

    def __len__(self) -> int:
        return len(self._entries)

    def lookups(self) -> Mapping[str, int]:
        """Counts of prompts by outcome: `hit`, `coalesced`, `miss`."""
        with self._lock:
            return dict(self._lookups)

    @property
    def num_bytes(self) -> int:
        """Memory of all entries."""
        return self._num_bytes

    def _cancel(self, computation: InFlight) -> None:
        if computation.work is None or computation.work.cancel():
            return
        # A lane runs it already: later requests may join it again.
        with self._lock:
            if not computation.is_over:
                self._in_flight.setdefault(computation.prompt, computation)

    def _finish(self, computation: InFlight, work: ItemFuture) -> None:
        if work.state == "cancelled":
            return
        if work.error is None:
            self._end(computation, work.result(), None)
        else:
            self._end(computation, None, work.error)

    def _end(
        self, computation: InFlight, completed: Completed | None, error: Exception | None
    ) -> None:
        with self._lock:
            computation.is_over = True
            self._remove_in_flight(computation)
            if completed is not None:
                self._keep(computation.prompt, completed.outputs[TEXT_OUTPUT])
            waiters = tuple(computation.waiters)
            for waiter in waiters:
                computation.waiters.discard(waiter)
                waiter.in_flight.discard(computation)
                if completed is not None:
                    waiter.embeddings[computation.prompt] = completed.outputs[TEXT_OUTPUT]
                    waiter.completed.append(completed)
            answered = [w for w in waiters if error is not None or not w.in_flight]
        for waiter in answered:
            if error is not None:
                # Now and not when the request wakes, so that its other prompts are not begun.
                self.leave(waiter)
            _settle_waiter(waiter.done, error)

    def _remove_in_flight(self, computation: InFlight) -> None:
        """The caller holds the lock."""
        if self._in_flight.get(computation.prompt) is computation:
            del self._in_flight[computation.prompt]

    def _keep(self, prompt: str, embedding: TextEmbedding) -> None:
        """The caller holds the lock."""
        embedding.setflags(write=False)
        if _num_bytes(prompt, embedding) > self._max_bytes:
            return
        if prompt in self._entries:
            self._num_bytes -= _num_bytes(prompt, self._entries.pop(prompt))
        self._entries[prompt] = embedding
        self._num_bytes += _num_bytes(prompt, embedding)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _num_bytes(*self._entries.popitem(last=False))


def _num_bytes(prompt: str, embedding: TextEmbedding) -> int:
    return sys.getsizeof(prompt) + embedding.nbytes + ENTRY_OVERHEAD_BYTES


def _settle_waiter(done: "Future[None]", error: Exception | None) -> None:
    with suppress(InvalidStateError):  # the request was cancelled
        if error is None:
            done.set_result(None)
            return
        # A copy for each request: one object raised on two event loops would collect the
        # tracebacks of both.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        done.set_exception(own)


class BlankPrompt(ValueError):
    """A prompt without a token; each waiting request reports it under its own field."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.prompt = prompt


class TextEncoder:
    """The text side of one model. May be used from any event loop."""

    def __init__(self, tokenizer: TextTokenizer, batcher: Batcher, cache: TextCache) -> None:
        self._tokenizer = tokenizer
        self._batcher = batcher
        self._cache = cache

    def look_up(self, groups: Sequence[PromptGroup]) -> PromptSet:
        """Split prompts into those in the cache and those to be computed."""
        cached = self._cache.find(prompt for group in groups for prompt in group.prompts)
        missing: dict[str, str] = {}
        for group in groups:
            for prompt in group.prompts:
                if prompt not in cached:
                    missing.setdefault(prompt, group.param)
        return PromptSet(groups=groups, cached=cached, missing=missing)

    def truncate(self, texts: Sequence[str], side: Truncation | None) -> tuple[str, ...]:
        """Texts without what `side` drops. CPU work if that is not None.

        Raises:
            InvalidRequest: With NONE, a text has more tokens than the model reads.
        """
        if side == "END":
            # The tokenizer drops tokens at the end.
            return tuple(_at_most(text, text.lstrip()[:MAX_TEXT_CHARS]) for text in texts)
        if side == "START":
            ends = (_at_most(text, text.rstrip()[-MAX_TEXT_CHARS:]) for text in texts)
            return tuple(map(self._tokenizer.drop_start, ends))
        for index, text in enumerate(texts if side == "NONE" else ()):
            if self._tokenizer.is_too_long(text[: MAX_TEXT_CHARS + 1]):
                raise InvalidRequest(
                    f"texts[{index}] has more than {self._tokenizer.max_tokens} tokens; with "
                    "truncate END the model reads its beginning, with START its end.",
                    code="text_too_long",
                    param=f"texts[{index}]",
                )
        return tuple(texts)

    def count_tokens(self, prompts: Iterable[str]) -> int:
        """Total tokens of prompts, none of which is blank. CPU work."""
        return sum(self._tokenizer.encode([prompt]).token_ids_BL.shape[1] for prompt in prompts)

    def blank(self, prompts: Iterable[str]) -> set[str]:
        """The prompts that have no token. CPU work."""
        return {prompt for prompt in prompts if not self._has_tokens(prompt)}

    def _has_tokens(self, prompt: str) -> bool:
        try:
            self._tokenizer.encode([prompt])
        except ValueError:
            return False
        return True

    async def encode(self, prompts: PromptSet, call: Call, pool: Executor) -> TextEmbeddings:
        """Raw embeddings [D] of all prompts; a missing one is computed once for all requests.

        Args:
            prompts: From `look_up`.
            call: Records how long the request waited.
            pool: Runs the tokenizer.

        Raises:
            InvalidRequest: A prompt has no token.
            ServiceError: The server stops, or a batch failed.
        """
        if not prompts.missing:
            return prompts.cached
        joined = call.clock()
        call.trace.enter_queue(joined)
        waiter, begun = self._cache.join(prompts.missing)
        try:
            if begun:
                self._begin(begun, pool, call)
            await asyncio.wrap_future(waiter.done)
        except BlankPrompt as error:
            raise blank_text(prompts.missing[error.prompt]) from error
        finally:
            self._cache.leave(waiter)
            completed, embeddings = waiter.completed, waiter.embeddings
            del waiter, begun  # A failed waiter and the frames of its error would form a cycle.
        waited_s = call.clock() - joined
        record_batches([_as_waited(done, waited_s) for done in completed], call)
        return {**prompts.cached, **embeddings}

    def _begin(self, computations: Sequence[InFlight], pool: Executor, call: Call) -> None:
        """Start in the pool, so that a cancelled request does not end what others wait for."""
        try:
            pool.submit(self._compute, computations, call)
        except RuntimeError:
            for computation in computations:
                self._cache.fail(computation, stopping_error())

    def _compute(self, computations: Sequence[InFlight], call: Call) -> None:
        """Tokenize and queue the prompts that are still wanted."""
        rows: dict[InFlight, NDArray[np.int64]] = {}
        for computation in filter(self._cache.is_wanted, computations):
            try:
                rows[computation] = self._tokenizer.encode([computation.prompt]).token_ids_BL[0]
            except ValueError:
                self._cache.fail(computation, BlankPrompt(computation.prompt))
            except Exception as error:
                # A bug of the tokenizer: fails this prompt only, and every waiting request logs it.
                self._cache.fail(computation, error)
        wanted = {c: row for c, row in rows.items() if self._cache.is_wanted(c)}
        num_left = sum(not (c.is_over or self._cache.is_wanted(c)) for c in computations)
        self._batcher.queue.count_abandoned(num_left, call.deadline)
        # Items have no deadline, because requests join and leave; the last to leave cancels.
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
            work = self._batcher.queue.put(items)
        except Exception as error:
            for computation in wanted:
                self._cache.fail(computation, error)
            return
        for computation, future in zip(wanted, work, strict=True):
            self._cache.launch(computation, future)


def _at_most(text: str, cut: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else cut


def _text_bucket(row_L: NDArray[np.int64]) -> Bucket:
    return Bucket("text", (-(-len(row_L) // TOKENS_STEP) * TOKENS_STEP,))


def _as_waited(done: Completed, waited_s: float) -> Completed:
    """Limit the times to what this request waited: the work may have begun before it joined."""
    run_s = min(done.run_s, waited_s)
    return replace(done, queue_s=min(done.queue_s, waited_s - run_s), run_s=run_s)
