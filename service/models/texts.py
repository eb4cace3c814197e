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
from concurrent.futures import Executor, Future
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
from service.lanes.work import Bucket, Completed, ItemFuture, WorkItem, record_batches
from service.messages import Truncation
from service.monitoring.metrics import Metrics
from service.validation import MAX_TEXT_CHARS, PromptGroup, blank_text
from service.waiting import wait_settled

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
    """One prompt, and the number of requests that wait for it.

    Changed only under the lock of the cache.
    """

    prompt: str
    num_waiting: int = 0
    future: ItemFuture = field(default_factory=ItemFuture)


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
        self._count(hit=len(found))
        return found

    def join(self, prompts: Iterable[str]) -> tuple[list[Computation], list[Computation]]:
        """Wait for prompts.

        Returns:
            One computation for each prompt, which the caller must `leave`; and those that are new,
            whose futures the caller must queue or settle.
        """
        joined: list[Computation] = []
        begun: list[Computation] = []
        num_hits = 0
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                computation = self._in_flight.get(prompt)
                if computation is None:
                    computation = Computation(prompt)
                    if prompt in self._entries:
                        outputs = {TEXT_OUTPUT: self._use(prompt)}
                        hit = Completed(outputs=outputs, queue_s=0.0, run_s=0.0)
                        computation.future.settle(hit)
                        num_hits += 1
                    else:
                        self._in_flight[prompt] = computation
                        computation.future.add_done_callback(partial(self._finish, prompt))
                        begun.append(computation)
                computation.num_waiting += 1
                joined.append(computation)
        num_begun = len(begun)
        self._count(hit=num_hits, coalesced=len(joined) - num_hits - num_begun, miss=num_begun)
        return joined, begun

    def leave(self, computations: Iterable[Computation]) -> None:
        """End the wait of a request, and cancel work that no other request waits for.

        Work that a lane runs already ends for the cache, and later requests may join it.
        """
        with self._lock:
            for computation in computations:
                computation.num_waiting -= 1
                if not computation.num_waiting:
                    computation.future.cancel()

    def __len__(self) -> int:
        return len(self._entries)

    def lookups(self) -> Mapping[str, int]:
        """Counts of prompts by outcome: `hit`, `coalesced`, `miss`."""
        with self._lock:
            return dict(self._lookups)

    def _count(self, hit: int = 0, coalesced: int = 0, miss: int = 0) -> None:
        with self._lock:
            self._lookups.update(hit=hit, coalesced=coalesced, miss=miss)
        self._metrics.text_cache_hits.inc(hit)
        self._metrics.text_cache_coalesced.inc(coalesced)
        self._metrics.text_cache_misses.inc(miss)

    def _use(self, prompt: str) -> TextEmbedding:
        self._entries.move_to_end(prompt)
        return self._entries[prompt]

    def _finish(self, prompt: str, future: Future[Completed]) -> None:
        with self._lock:
            del self._in_flight[prompt]
            if not future.cancelled() and future.exception() is None:
                self._keep(prompt, future.result().outputs[TEXT_OUTPUT])

    def _keep(self, prompt: str, embedding: TextEmbedding) -> None:
        embedding.setflags(write=False)
        if _num_bytes(prompt, embedding) > self._max_bytes:
            return
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
        began = call.clock()
        joined, begun = self._cache.join(prompts.missing)
        try:
            # In the pool, so that a cancelled request does not end what others wait for.
            self._submit(begun, pool, call)
            await wait_settled([computation.future for computation in joined])
            for computation in joined:  # after an error others may not be done
                _check(computation, prompts.missing[computation.prompt])
            done = {c.prompt: c.future.result() for c in joined}
        finally:
            self._cache.leave(joined)
        waited_s = call.clock() - began
        record_batches([_as_waited(completed, waited_s) for completed in done.values()], call)
        found = {prompt: completed.outputs[TEXT_OUTPUT] for prompt, completed in done.items()}
        return {**prompts.cached, **found}

    def _submit(self, computations: Sequence[Computation], pool: Executor, call: Call) -> None:
        try:
            if computations:
                pool.submit(self._compute, computations, call)
        except RuntimeError:
            for computation in computations:
                computation.future.settle(error=stopping_error())

    def _compute(self, computations: Sequence[Computation], call: Call) -> None:
        """Tokenize and queue the prompts that are still wanted."""
        wanted = [c for c in computations if not c.future.cancelled()]
        num_left = len(computations) - len(wanted)
        self._batcher.queue.count_abandoned(num_left, call.deadline)
        items = [item for c in wanted if (item := self._item(c, call)) is not None]
        try:
            self._batcher.queue.put(items)
        except ServiceError as error:
            for item in items:
                item.future.settle(error=error)

    def _item(self, computation: Computation, call: Call) -> WorkItem | None:
        """What to queue for a prompt; None if it cannot be tokenized, which is its result."""
        try:
            row_L = self._tokenizer.encode([computation.prompt]).token_ids_BL[0]
        except ValueError:
            computation.future.settle(error=blank_text("a text"))
            return None
        except Exception as cause:  # a bug of the tokenizer fails this prompt only
            error = InternalError("A text could not be tokenized.")
            error.__cause__ = cause
            computation.future.settle(error=error)
            return None
        # Items have no deadline, because requests join and leave; the last to leave cancels.
        return WorkItem(
            bucket=Bucket("text", (-(-len(row_L) // TOKENS_STEP) * TOKENS_STEP,)),
            cost=len(row_L),
            payload=row_L,
            priority=call.priority,
            caller=call.caller,
            future=computation.future,
        )


def _check(computation: Computation, param: str) -> None:
    """Raise the error of a prompt that the field `param` of a request names, if it has one."""
    error = computation.future.error
    if isinstance(error, InvalidRequest):
        raise blank_text(param)
    if error is not None:
        # One object raised on two event loops would collect the tracebacks of both.
        raise copy.copy(error) from error.__cause__


def _at_most(text: str, cut: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else cut


def _as_waited(done: Completed, waited_s: float) -> Completed:
    """Limit the times to what this request waited: the work may have begun before it joined."""
    run_s = min(done.run_s, waited_s)
    return replace(done, queue_s=min(done.queue_s, waited_s - run_s), run_s=run_s)
