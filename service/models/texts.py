"""Prompts to text embeddings: a bounded cache, shared computation of equal prompts, tokenizing.

The key of the cache is the prompt after its template, so one entry serves every template set.
Concurrent requests for one prompt share one computation (singleflight). The computation continues
while at least one request waits for it, and is cancelled when none is left. An error is raised in
every waiting request and is not cached.

Shape legend: D width, L tokens.
"""

import copy
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.text import TextTokenizer
from service.call import Call
from service.errors import InternalError, InvalidRequest, ServiceError
from service.lanes.batch_queue import stopping_error
from service.lanes.batching import Batcher
from service.lanes.lane import TEXT_OUTPUT
from service.lanes.work import (
    Bucket,
    Completed,
    ItemFuture,
    WorkItem,
    record_batches,
    wait_settled,
)
from service.messages import Truncation
from service.monitoring.metrics import Metrics
from service.validation import MAX_TEXT_CHARS, PromptGroup, blank_text
from service.waiting import cancel_all

TextEmbedding = NDArray[np.float32]
TextEmbeddings = Mapping[str, TextEmbedding]
# Memory of a cache entry without its text and numbers: the array object, a link and a slot.
ENTRY_OVERHEAD_BYTES: Final = 300
# Texts share a batch if their lengths round up to the same multiple of this many tokens.
TOKENS_STEP: Final = 8
# Cost of a prompt in patches: about the tokens of a class name in a template. Texts are not
# tokenized before admission.
PROMPT_COST: Final = 8
# About 19,000 embeddings of 768 numbers, for each model.
TEXT_CACHE_BYTES: Final = 64 * 1024 * 1024


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
class Computation:
    """The computation of one prompt, and the futures of the requests that wait for it.

    Changed only under the lock of the cache.
    """

    prompt: str
    waiting: list[ItemFuture] = field(default_factory=list)
    work: ItemFuture | None = None


class TextCache:
    """An LRU map from prompt to raw embedding [D], bounded in bytes, with singleflight.

    Thread-safe, on any event loop. An entry larger than the bound is not kept.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self._metrics = metrics
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._in_flight: dict[str, Computation] = {}
        self._lookups: Counter[str] = Counter()

    def find(self, prompts: Iterable[str]) -> dict[str, TextEmbedding]:
        """The cached embeddings of these prompts; read-only arrays."""
        with self._lock:
            found = {p: self._use(p) for p in dict.fromkeys(prompts) if p in self._entries}
            self._lookups["hit"] += len(found)
        self._metrics.text_cache_hits.inc(len(found))
        return found

    def join(self, prompts: Iterable[str]) -> tuple[dict[str, ItemFuture], list[Computation]]:
        """Wait for prompts.

        Returns:
            A future for each prompt, which the caller must cancel if it leaves; and the
            computations that are new, which the caller must start by `launch` or end by `fail`.
        """
        futures: dict[str, ItemFuture] = {}
        begun: list[Computation] = []
        num_found = 0
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                future = futures[prompt] = ItemFuture()
                if prompt in self._entries:
                    outputs = {TEXT_OUTPUT: self._use(prompt)}
                    future.settle(Completed(outputs=outputs, queue_s=0.0, run_s=0.0))
                    num_found += 1
                    continue
                computation = self._in_flight.get(prompt)
                if computation is None:
                    computation = self._in_flight[prompt] = Computation(prompt)
                    begun.append(computation)
                computation.waiting.append(future)
                future.on_left = partial(self._leave, computation, future)
            num_joined = len(futures) - num_found - len(begun)
            self._lookups.update(hit=num_found, coalesced=num_joined, miss=len(begun))
        self._metrics.text_cache_hits.inc(num_found)
        self._metrics.text_cache_coalesced.inc(num_joined)
        self._metrics.text_cache_misses.inc(len(begun))
        return futures, begun

    def launch(self, computation: Computation, work: ItemFuture) -> None:
        """Attach the queued work; its result or error ends the computation."""
        with self._lock:
            computation.work = work
            if not computation.waiting:
                work.cancel()
        work.when_done(partial(self._finish, computation))

    def fail(self, computation: Computation, error: ServiceError) -> None:
        """End a computation by an error, of which each request gets a copy."""
        for future in self._end(computation):
            # One object raised on two event loops would collect the tracebacks of both.
            own = copy.copy(error)
            own.__cause__ = error.__cause__
            future.settle(error=own)

    def __len__(self) -> int:
        return len(self._entries)

    def lookups(self) -> Mapping[str, int]:
        """Counts of prompts by outcome: `hit`, `coalesced`, `miss`."""
        with self._lock:
            return dict(self._lookups)

    def _use(self, prompt: str) -> TextEmbedding:
        self._entries.move_to_end(prompt)
        return self._entries[prompt]

    def _leave(self, computation: Computation, future: ItemFuture) -> None:
        """Remove a request that was cancelled, and work that no other request waits for.

        Work that a lane runs already ends for the cache, and later requests may join it.
        """
        with self._lock:
            if future in computation.waiting:
                computation.waiting.remove(future)
                if not computation.waiting and (
                    computation.work is None or computation.work.cancel()
                ):
                    self._remove(computation)

    def _finish(self, computation: Computation, work: ItemFuture) -> None:
        if work.state == "cancelled":
            return
        if work.error is not None:
            self.fail(computation, work.error)
            return
        completed = work.result()
        with self._lock:
            self._keep(computation.prompt, completed.outputs[TEXT_OUTPUT])
            futures = self._end(computation)
        for future in futures:
            future.settle(completed)

    def _end(self, computation: Computation) -> list[ItemFuture]:
        with self._lock:
            self._remove(computation)
            futures, computation.waiting = computation.waiting, []
        return futures

    def _remove(self, computation: Computation) -> None:
        if self._in_flight.get(computation.prompt) is computation:
            del self._in_flight[computation.prompt]

    def _keep(self, prompt: str, embedding: TextEmbedding) -> None:
        embedding.setflags(write=False)
        if _num_bytes(prompt, embedding) > self._max_bytes:
            return
        if prompt in self._entries:
            self.num_bytes -= _num_bytes(prompt, self._entries.pop(prompt))
        self._entries[prompt] = embedding
        self.num_bytes += _num_bytes(prompt, embedding)
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= _num_bytes(*self._entries.popitem(last=False))


def _num_bytes(prompt: str, embedding: TextEmbedding) -> int:
    return sys.getsizeof(prompt) + embedding.nbytes + ENTRY_OVERHEAD_BYTES


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
        futures, begun = self._cache.join(prompts.missing)
        try:
            if begun:
                self._begin(begun, pool, call)
            await wait_settled(list(futures.values()))
            for prompt, future in futures.items():
                if isinstance(future.error, InvalidRequest):
                    raise blank_text(prompts.missing[prompt])
                if future.error is not None:
                    raise future.error
            done = {prompt: future.result() for prompt, future in futures.items()}
        finally:
            cancel_all(futures.values())
            futures.clear()  # a failed one leads to this frame by its traceback
        waited_s = call.clock() - joined
        record_batches([_as_waited(completed, waited_s) for completed in done.values()], call)
        return {
            **prompts.cached,
            **{prompt: completed.outputs[TEXT_OUTPUT] for prompt, completed in done.items()},
        }

    def _begin(self, computations: Sequence[Computation], pool: Executor, call: Call) -> None:
        """Start in the pool, so that a cancelled request does not end what others wait for."""
        try:
            pool.submit(self._compute, computations, call)
        except RuntimeError:
            for computation in computations:
                self._cache.fail(computation, stopping_error())

    def _compute(self, computations: Sequence[Computation], call: Call) -> None:
        """Tokenize and queue the prompts that are still wanted."""
        wanted = [c for c in computations if c.waiting]
        num_left = len(computations) - len(wanted)
        self._batcher.queue.count_abandoned(num_left, call.deadline)
        rows: dict[Computation, NDArray[np.int64]] = {}
        for computation in wanted:
            try:
                rows[computation] = self._tokenizer.encode([computation.prompt]).token_ids_BL[0]
            except ValueError:
                self._cache.fail(computation, blank_text("a text"))
            except Exception as cause:  # a bug of the tokenizer fails this prompt only
                error = InternalError("A text could not be tokenized.")
                error.__cause__ = cause
                self._cache.fail(computation, error)
        # Items have no deadline, because requests join and leave; the last to leave cancels.
        items = [
            WorkItem(
                bucket=_text_bucket(row),
                cost=len(row),
                payload=row,
                priority=call.priority,
                caller=call.caller,
            )
            for row in rows.values()
        ]
        try:
            work = self._batcher.queue.put(items)
        except ServiceError as error:
            for computation in rows:
                self._cache.fail(computation, error)
            return
        for computation, future in zip(rows, work, strict=True):
            self._cache.launch(computation, future)


def _at_most(text: str, cut: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else cut


def _text_bucket(row_L: NDArray[np.int64]) -> Bucket:
    return Bucket("text", (-(-len(row_L) // TOKENS_STEP) * TOKENS_STEP,))


def _as_waited(done: Completed, waited_s: float) -> Completed:
    """Limit the times to what this request waited: the work may have begun before it joined."""
    run_s = min(done.run_s, waited_s)
    return replace(done, queue_s=min(done.queue_s, waited_s - run_s), run_s=run_s)
