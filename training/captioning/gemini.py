"""Captions images with Gemini, given the image, its alt text and a short caption.

Several threads send requests, within the limits of the account. Each answer becomes one outcome:

| answer | becomes |
| --- | --- |
| text | a caption, also where the service cut it at the token limit |
| no text, or blocked for safety, recitation, ... | `Failure`, kept: a retry would change nothing |
| 400 and other 4xx for one request | `Failure`, kept |
| 408, 429, 5xx, no connection, no answer in time | `Unavailable`: the request is retried |
| 429 for a daily quota, or with a long pause | `JobStopped` |
| a wrong key, no permission, an unknown model | `JobStopped` |
"""

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import httpx2
from google import genai
from google.genai import errors, types
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from training.captioning.gemini_config import MEDIA_TYPES, GeminiConfig, GeminiLimits
from training.captioning.journal import Failure, JobStopped, Outcome, Usage
from training.data.shards.sample import Sample

# Named, because releases of the client differ in their default. Settings of image resolution and
# of thinking come to this version of the interface first.
_API_VERSION = "v1beta"
_MINUTE_S = 60.0
_SECONDS = re.compile(r"^(\d+(?:\.\d+)?)s$")
_MAX_MESSAGE = 300

T = TypeVar("T")


class Clock:
    """Monotonic time, and sleeping that another thread can end. Tests replace it."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            InterruptedError: `interrupt` was or is called.
        """
        if self._interrupted.wait(seconds):
            raise InterruptedError("the job is ending")

    def interrupt(self) -> None:
        """Wake all sleeping threads, and let no thread sleep again."""
        self._interrupted.set()


@dataclass(slots=True, eq=False)
class SentRequest:
    """Time of a request, and the tokens that it counts with."""

    at_s: float
    tokens: int


class RateLimit:
    """Limits requests and tokens in every sliding minute. Thread-safe.

    A token bucket would allow two minutes' worth within one minute after a pause, which a service
    that counts sliding minutes refuses.
    """

    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int, clock: Clock) -> None:
        if requests_per_minute < 1 or tokens_per_minute < 1:
            raise ValueError("requests_per_minute and tokens_per_minute must be at least 1")
        self._max_requests = requests_per_minute
        self._max_tokens = tokens_per_minute
        self._clock = clock
        self._requests: deque[SentRequest] = deque()
        self._held_until_s = clock.now()
        self._state = threading.Lock()
        # A waiting thread keeps the turn, so that requests are sent in the order of their calls.
        self._turn = threading.Lock()

    def wait(self, tokens: int) -> SentRequest:
        """Wait until a request of so many tokens may be sent, and count it as sent.

        Raises:
            ValueError: The request alone exceeds the limit of tokens.
            InterruptedError: The clock was interrupted.
        """
        if tokens > self._max_tokens:
            raise ValueError(
                f"one request has {tokens} tokens, more than tokens_per_minute {self._max_tokens}"
            )
        with self._turn:
            while True:
                with self._state:
                    now = self._clock.now()
                    delay_s = self._delay(now, tokens)
                    if delay_s <= 0:
                        request = SentRequest(at_s=now, tokens=tokens)
                        self._requests.append(request)
                        return request
                self._clock.sleep(delay_s)

    def correct(self, request: SentRequest, tokens: int) -> None:
        """Replace the estimated tokens of a request by the actual ones."""
        with self._state:
            request.tokens = tokens

    def hold(self, seconds: float) -> None:
        """Send nothing for some time, because the service asked for a pause."""
        with self._state:
            self._held_until_s = max(self._held_until_s, self._clock.now() + seconds)

    def _delay(self, now: float, tokens: int) -> float:
        """Seconds until the next check; 0 if the request may be sent now."""
        while self._requests and self._requests[0].at_s <= now - _MINUTE_S:
            self._requests.popleft()
        if now < self._held_until_s:
            return self._held_until_s - now
        spent = sum(request.tokens for request in self._requests)
        if len(self._requests) < self._max_requests and spent + tokens <= self._max_tokens:
            return 0.0
        return self._requests[0].at_s + _MINUTE_S - now


class Unavailable(Exception):
    """A call failed temporarily.

    Attributes:
        asked_s: Pause that the service asked for, in seconds; 0 for none.
    """

    def __init__(self, message: str, *, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


def call_with_retries(function: Callable[[], T], limits: GeminiLimits, clock: Clock) -> T:
    """Call a function until it raises no `Unavailable`, or the attempts are used up.

    Pauses are drawn at random up to a bound that doubles ("full jitter"), so that threads do not
    return at the same time. A pause that the service asks for is added to the drawn one.

    Raises:
        Unavailable: The last attempt failed.
        InterruptedError: The clock was interrupted.
    """
    jitter = wait_random_exponential(multiplier=limits.first_delay_s, max=limits.max_delay_s)

    def pause_s(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked_s = error.asked_s if isinstance(error, Unavailable) else 0.0
        return float(jitter(state)) + asked_s

    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        stop=stop_after_attempt(limits.max_attempts),
        wait=pause_s,
        sleep=clock.sleep,
        reraise=True,
    )
    return retrying(function)


def read_answer(key: str, response: types.GenerateContentResponse) -> Outcome:
    """Turn an answer into an outcome."""
    usage = _usage(response.usage_metadata)
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        failure = Failure(kind="blocked", message=f"the prompt: {feedback.block_reason.value}")
        return Outcome(key=key, failure=failure, usage=usage)
    candidate = response.candidates[0] if response.candidates else None
    reason = candidate.finish_reason if candidate is not None else None
    if reason not in (None, types.FinishReason.STOP, types.FinishReason.MAX_TOKENS):
        failure = Failure(kind="blocked", message=f"the answer: {getattr(reason, 'value', reason)}")
        return Outcome(key=key, failure=failure, usage=usage)
    parts = (candidate.content.parts or []) if candidate and candidate.content else []
    text = "".join(part.text for part in parts if part.text and not part.thought).strip()
    if not text:
        reason_name = "none" if reason is None else str(reason.value)
        failure = Failure(kind="empty", message=f"no text; finish reason: {reason_name}")
        return Outcome(key=key, failure=failure, usage=usage)
    return Outcome(key=key, caption=text, usage=usage)


def read_error(error: errors.APIError, *, longest_pause_s: float) -> Failure:
    """Turn an error of one request into a failure.

    Raises:
        Unavailable: The error is temporary.
        JobStopped: The error is permanent, and all other requests would fail as well.
    """
    message = f"{error.code} {error.status}: {error.message}"[:_MAX_MESSAGE]
    if error.code == 429:
        pause_s = asked_pause_s(error)
        if pause_s > longest_pause_s or _is_daily(error):
            raise JobStopped(
                f"stopped: the account's quota is used up ({message}); run the same command again "
                "when there is quota, to resume"
            )
        raise Unavailable(message, asked_s=pause_s)
    if error.code == 408 or error.code >= 500:
        raise Unavailable(message, asked_s=min(asked_pause_s(error), longest_pause_s))
    reasons = {detail.get("reason") for detail in _details(error)}
    if error.code in (401, 402, 403, 404) or "API_KEY_INVALID" in reasons:
        raise JobStopped(
            f"stopped: the service refuses every request ({message}); check the key, its "
            "permissions and the name of the model, and run the same command again"
        )
    return Failure(kind="refused", message=message)


def asked_pause_s(error: errors.APIError) -> float:
    """Pause that an error asks for in its body or header, in seconds; 0 for none."""
    pauses = [0.0]
    for detail in _details(error):
        match = _SECONDS.match(str(detail.get("retryDelay", "")))
        if match:
            pauses.append(float(match.group(1)))
    header = getattr(error.response, "headers", None) or {}
    after = str(header.get("retry-after", ""))
    if after.isdecimal():  # this service does not use the other form, a date
        pauses.append(float(after))
    return max(pauses)


def _is_daily(error: errors.APIError) -> bool:
    return any(
        "PerDay" in str(violation.get("quotaId", ""))
        for detail in _details(error)
        for violation in detail.get("violations", [])
    )


def _details(error: errors.APIError) -> Iterator[dict[str, Any]]:
    document = error.details if isinstance(error.details, dict) else {}
    inner = document.get("error", document)
    for detail in (inner.get("details") or []) if isinstance(inner, dict) else []:
        if isinstance(detail, dict):
            yield detail


def _usage(metadata: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if metadata is None:
        return Usage()
    output = (metadata.candidates_token_count or 0) + (metadata.thoughts_token_count or 0)
    return Usage(input_tokens=metadata.prompt_token_count or 0, output_tokens=output)


@contextmanager
def open_client(
    api_key: str, limits: GeminiLimits, *, base_url: str | None = None
) -> Iterator[genai.Client]:
    """Open Google's client without its own retries, which would ignore our limits."""
    with httpx2.Client(follow_redirects=True, timeout=limits.timeout_s) as http:
        options = types.HttpOptions(
            base_url=base_url,
            api_version=_API_VERSION,
            timeout=int(limits.timeout_s * 1000),
            httpx_client=http,
        )
        yield genai.Client(api_key=api_key, vertexai=False, http_options=options)


class GeminiCaptioner:
    """Captions with Gemini, within the limits of the account."""

    def __init__(
        self,
        config: GeminiConfig,
        limits: GeminiLimits,
        client: genai.Client,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.source = config.source
        self._config = config
        self._limits = limits
        self._client = client
        self._clock = clock or Clock()
        self._rate = RateLimit(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            clock=self._clock,
        )

    def settings(self) -> Mapping[str, Any]:
        """Settings that the captions depend on."""
        return {"kind": "gemini", **asdict(self._config)}

    def caption(self, samples: Iterable[Sample]) -> Iterator[list[Outcome]]:
        """Caption samples, a bounded number at a time; outcomes come in order of arrival.

        Raises:
            JobStopped: The service refuses every request. Answers of requests in flight come first,
                because they are paid for. The captioner cannot be used again.
        """
        in_flight: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(max_workers=self._limits.max_in_flight) as pool:
            try:
                for sample in samples:
                    in_flight.add(pool.submit(self._caption_one, sample))
                    if len(in_flight) == self._limits.max_in_flight:
                        arrived, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                        yield from _results(arrived)
                while in_flight:
                    arrived, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                    yield from _results(arrived)
            except Exception:
                self._clock.interrupt()
                yield from ([f.result()] for f in in_flight if f.exception() is None)
                raise
            except BaseException:
                self._clock.interrupt()
                raise

    def _caption_one(self, sample: Sample) -> Outcome:
        try:
            return call_with_retries(lambda: self._ask(sample), self._limits, self._clock)
        except Unavailable as error:
            failure = Failure(kind="unavailable", message=str(error), is_transient=True)
            return Outcome(key=sample.key, failure=failure)

    def _ask(self, sample: Sample) -> Outcome:
        """Send one request once the limits allow it."""
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
        except (httpx2.HTTPError, ValueError) as error:  # no connection, timeout, invalid JSON
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
    """Yield the results of finished futures, then raise the first error."""
    first_error = None
    for future in futures:
        error = future.exception()
        if error is None:
            yield [future.result()]
        elif first_error is None:
            first_error = error
    if first_error is not None:
        raise first_error
