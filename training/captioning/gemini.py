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

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
from google import genai
from google.genai import errors, types
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from training.captioning.gemini_config import MEDIA_TYPES, GeminiConfig, GeminiLimits
from training.captioning.journal import Failure, JobStopped, Outcome, Usage
from training.data.shards.sample import Sample


class Clock(Protocol):
    """Something that knows how late it is and can wait."""

    def now(self) -> float:
        """Return seconds since some fixed moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            InterruptedError: `interrupt` was or is called.
        """

    def interrupt(self) -> None:
        """Wake all who sleep, and let nobody sleep again."""


class SystemClock:
    """The machine's clock; its sleepers can be woken from another thread."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()

    def now(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for an event that only `interrupt` brings."""
        if self._interrupted.wait(seconds):
            raise InterruptedError("the job is ending")

    def interrupt(self) -> None:
        """Wake all who sleep, and let nobody sleep again."""
        self._interrupted.set()


VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")


def read_api_key(file: Path | None, environment: Mapping[str, str]) -> str:
    """Read the key from a file if one is named, else from the environment.

    Raises:
        ValueError: There is no key; the message says where one is looked for.
        FileNotFoundError: The named file is not there.
    """
    if file is not None:
        key = file.read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(f"{file} is empty; it should hold the key and nothing else")
        return key
    for variable in VARIABLES:
        if environment.get(variable, "").strip():
            return environment[variable].strip()
    raise ValueError(
        f"no key: set {' or '.join(VARIABLES)}, or name a file that holds it by --api-key-file"
    )


_MINUTE_S = 60.0


@dataclass(slots=True, eq=False)
class Request:
    """A request that was let through: when, and how many tokens it is counted with."""

    at_s: float
    tokens: int


class RateLimit:
    """Lets requests through so that no minute, wherever it begins, holds more than is allowed.

    A bucket that refills would allow two minutes' worth within one minute, after a pause; a
    service that counts sliding minutes refuses that. All methods may be called from any thread.
    """

    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int, clock: Clock) -> None:
        if requests_per_minute < 1 or tokens_per_minute < 1:
            raise ValueError("requests and tokens a minute must be at least 1")
        self._max_requests = requests_per_minute
        self._max_tokens = tokens_per_minute
        self._clock = clock
        self._requests: deque[Request] = deque()
        self._held_until_s = clock.now()
        self._state = threading.Lock()
        # Who waits keeps the turn, so that requests go in the order in which they came.
        self._turn = threading.Lock()

    def wait(self, tokens: int) -> Request:
        """Wait until a request of so many tokens may be sent, and count it as sent.

        Raises:
            ValueError: It has more tokens than any minute allows.
            InterruptedError: The clock ended all waiting.
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
                        request = Request(at_s=now, tokens=tokens)
                        self._requests.append(request)
                        return request
                self._clock.sleep(delay_s)

    def correct(self, request: Request, tokens: int) -> None:
        """Count a request with the tokens that it turned out to have."""
        with self._state:
            request.tokens = tokens

    def hold(self, seconds: float) -> None:
        """Let nothing through for some time: the service asked for a pause."""
        with self._state:
            self._held_until_s = max(self._held_until_s, self._clock.now() + seconds)

    def _delay(self, now: float, tokens: int) -> float:
        """Return how long to wait before looking again, 0 where the request may go."""
        while self._requests and self._requests[0].at_s <= now - _MINUTE_S:
            self._requests.popleft()
        if now < self._held_until_s:
            return self._held_until_s - now
        spent = sum(request.tokens for request in self._requests)
        if len(self._requests) < self._max_requests and spent + tokens <= self._max_tokens:
            return 0.0
        return self._requests[0].at_s + _MINUTE_S - now


T = TypeVar("T")


class Unavailable(Exception):
    """A call failed in a way that may pass.

    Attributes:
        asked_s: The pause in seconds that the service asked for, 0 where it asked for none.
    """

    def __init__(self, message: str, *, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


class Retry:
    """Calls functions with retries; may be used from several threads.

    `max_attempts` counts the first call too. The first pause is at most `first_delay_s`, each
    further one may be twice as long, and none is over `max_delay_s` unless the service asks for it.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        first_delay_s: float,
        max_delay_s: float,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        if max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if not 0 < first_delay_s <= max_delay_s:
            raise ValueError("first_delay_s must be over 0 and at most max_delay_s")
        self._max_attempts = max_attempts
        self._first_delay_s, self._max_delay_s = first_delay_s, max_delay_s
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function until it raises no `Unavailable`, or the attempts are used up.

        Raises:
            Unavailable: The last attempt's.
            InterruptedError: The clock ended all waiting.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(self._max_attempts),
            wait=self._pause,
            sleep=self._clock.sleep,
            reraise=True,
        )
        return retrying(function)

    def _pause(self, state: RetryCallState) -> float:
        """Choose a pause in seconds: "full jitter", so that threads do not return together."""
        longest = min(self._max_delay_s, self._first_delay_s * 2.0 ** (state.attempt_number - 1))
        with self._lock:
            drawn = self._rng.uniform(0, longest)
        error = state.outcome.exception() if state.outcome is not None else None
        # The drawn pause comes on top, or all threads would return at the moment asked for.
        return drawn + (error.asked_s if isinstance(error, Unavailable) else 0.0)


_SECONDS = re.compile(r"^(\d+(?:\.\d+)?)s$")
_MAX_MESSAGE = 300


def read_answer(key: str, response: types.GenerateContentResponse) -> Outcome:
    """Make an outcome of an answer that arrived."""
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
        said = "nothing" if reason is None else str(reason.value)
        failure = Failure(kind="empty", message=f"no text; the service gave as its reason: {said}")
        return Outcome(key=key, failure=failure, usage=usage)
    return Outcome(key=key, caption=text, usage=usage)


def read_error(error: errors.APIError, *, longest_pause_s: float) -> Failure:
    """Make a failure of one request's error.

    Raises:
        Unavailable: It may pass.
        JobStopped: It will not, and every other request would meet it too.
    """
    message = f"{error.code} {error.status}: {error.message}"[:_MAX_MESSAGE]
    if error.code == 429:
        pause_s = asked_pause_s(error)
        if pause_s > longest_pause_s or _is_daily(error):
            raise JobStopped(
                f"stopped, because the account's quota is used up ({message}); start the same "
                "command again when there is quota, it goes on from here"
            )
        raise Unavailable(message, asked_s=pause_s)
    if error.code == 408 or error.code >= 500:
        raise Unavailable(message, asked_s=min(asked_pause_s(error), longest_pause_s))
    reasons = {detail.get("reason") for detail in _details(error)}
    if error.code in (401, 402, 403, 404) or "API_KEY_INVALID" in reasons:
        raise JobStopped(
            f"stopped, because the service refuses every request ({message}); see to the key, its "
            "permissions and the name of the model, and start the same command again"
        )
    return Failure(kind="refused", message=message)


def asked_pause_s(error: errors.APIError) -> float:
    """Return the pause in seconds that an error asks for, in its body or header; 0 for none."""
    pauses = [0.0]
    for detail in _details(error):
        match = _SECONDS.match(str(detail.get("retryDelay", "")))
        if match:
            pauses.append(float(match.group(1)))
    header = getattr(error.response, "headers", None) or {}
    after = str(header.get("retry-after", ""))
    if after.isdecimal():  # the other form, a date, is not used by this service
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
