"""Prompts in, embeddings out: from the cache, from another request's flight, or by the lanes.

Shape legend: L tokens, D width.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.text import TextTokenizer
from service.call import Call
from service.errors import Unavailable
from service.lanes.batching import Batcher
from service.lanes.work import Bucket, Completed, WorkItem
from service.models.text_cache import Embedding, Flight, TextCache
from service.validation import blank_text

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
