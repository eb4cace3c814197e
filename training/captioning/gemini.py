"""Captions images with Gemini, given the image, its alt text and a short caption.

Requests go out from several threads, as many as are allowed; each answer is an outcome of its own.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import httpx2
from google import genai
from google.genai import errors, types

from training.captioning.clock import Clock, SystemClock
from training.captioning.gemini_answer import read_answer, read_error
from training.captioning.gemini_config import MEDIA_TYPES, GeminiConfig, GeminiLimits
from training.captioning.outcome import Failure, Outcome
from training.captioning.rate_limit import RateLimit
from training.captioning.retry import Retry, Unavailable
from training.data.shards.sample import Sample

# Named, since the client's releases differ in their default; the settings of how finely the model
# looks and how long it thinks come to this version of the interface first.
_API_VERSION = "v1beta"


@contextmanager
def open_client(
    api_key: str, limits: GeminiLimits, *, base_url: str | None = None
) -> Iterator[genai.Client]:
    """Open Google's client, without its own retries, which do not know our limits."""
    with httpx2.Client(follow_redirects=True, timeout=limits.timeout_s) as http:
        options = types.HttpOptions(
            base_url=base_url,
            api_version=_API_VERSION,
            timeout=int(limits.timeout_s * 1000),
            httpx_client=http,
        )
        yield genai.Client(api_key=api_key, vertexai=False, http_options=options)


@contextmanager
def open_captioner(
    config: GeminiConfig, limits: GeminiLimits, api_key: str, *, base_url: str | None = None
) -> Iterator["GeminiCaptioner"]:
    """Open a captioner that has a client of its own."""
    with open_client(api_key, limits, base_url=base_url) as client:
        yield GeminiCaptioner(config, limits, client)


class GeminiCaptioner:
    """Gemini behind its service's limits.

    Args of the constructor beside the settings are what tests put others in place of: the client,
    the clock that pauses are counted by, and the source of chance in them.
    """

    def __init__(
        self,
        config: GeminiConfig,
        limits: GeminiLimits,
        client: genai.Client,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.source = config.source
        self._config = config
        self._limits = limits
        self._client = client
        self._clock = clock or SystemClock()
        self._retry = Retry(
            max_attempts=limits.max_attempts,
            first_delay_s=limits.first_delay_s,
            max_delay_s=limits.max_delay_s,
            clock=self._clock,
            rng=rng or random.Random(),
        )
        self._rate = RateLimit(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            clock=self._clock,
        )

    def settings(self) -> Mapping[str, Any]:
        """Return what the captions depend on."""
        return {"kind": "gemini", **asdict(self._config)}

    def caption(self, samples: Iterable[Sample]) -> Iterator[list[Outcome]]:
        """Caption samples, a bounded number at a time; answers come in the order they arrive.

        Raises:
            JobStopped: The service refuses every request. Answers that were under way come first,
                since they are paid for. The captioner cannot be used again.
        """
        flying: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(max_workers=self._limits.max_in_flight) as pool:
            try:
                for sample in samples:
                    flying.add(pool.submit(self._caption_one, sample))
                    if len(flying) == self._limits.max_in_flight:
                        arrived, flying = wait(flying, return_when=FIRST_COMPLETED)
                        yield from _results(arrived)
                while flying:
                    arrived, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from _results(arrived)
            except Exception:
                self._clock.interrupt()
                yield from ([f.result()] for f in flying if f.exception() is None)
                raise
            except BaseException:
                self._clock.interrupt()
                raise

    def _caption_one(self, sample: Sample) -> Outcome:
        try:
            return self._retry.call(lambda: self._ask(sample))
        except Unavailable as error:
            failure = Failure(kind="unavailable", message=str(error), is_transient=True)
            return Outcome(key=sample.key, failure=failure)

    def _ask(self, sample: Sample) -> Outcome:
        """Send one request when the limits allow it."""
        request = self._rate.wait(self._config.input_tokens(sample))
        try:
            response = self._client.models.generate_content(
                model=self._config.model, contents=self._contents(sample), config=self._generation()
            )
        except errors.APIError as error:
            try:
                failure = read_error(error, longest_pause_s=self._limits.longest_pause_s)
            except Unavailable as unavailable:
                self._rate.hold(unavailable.asked_s)
                raise
            return Outcome(key=sample.key, failure=failure)
        except (httpx2.HTTPError, ValueError) as error:  # no connection, no time, no JSON
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        outcome = read_answer(sample.key, response)
        if outcome.usage.input_tokens:
            self._rate.correct(request, outcome.usage.input_tokens)
        return outcome

    def _contents(self, sample: Sample) -> list[types.PartUnionDict]:
        image = types.Part.from_bytes(data=sample.image, mime_type=MEDIA_TYPES[sample.suffix])
        return [image, types.Part.from_text(text=self._config.text_for(sample))]

    def _generation(self) -> types.GenerateContentConfig:
        config = self._config
        thinking = None
        if config.thinking is not None:
            level = types.ThinkingLevel(config.thinking.upper())
            thinking = types.ThinkingConfig(thinking_level=level)
        resolution = f"MEDIA_RESOLUTION_{config.image_resolution.upper()}"
        return types.GenerateContentConfig(
            max_output_tokens=config.max_output_tokens,
            temperature=config.temperature,
            seed=config.seed,
            media_resolution=types.MediaResolution(resolution),
            thinking_config=thinking,
        )


def _results(futures: Iterable[Future[Outcome]]) -> Iterator[list[Outcome]]:
    """Give the results of finished futures, and raise the first error after them."""
    first_error = None
    for future in futures:
        error = future.exception()
        if error is None:
            yield [future.result()]
        elif first_error is None:
            first_error = error
    if first_error is not None:
        raise first_error
