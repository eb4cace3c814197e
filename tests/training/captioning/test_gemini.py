"""Gemini: requests, answers, errors, retries, limits and the key."""

import base64
import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.fakes import FakeClock, Reply, StandIn, make_samples, refused, said
from training.captioning.gemini import (
    GeminiCaptioner,
    RateLimit,
    Unavailable,
    call_with_retries,
    open_client,
)
from training.captioning.gemini_config import GeminiConfig, GeminiLimits
from training.captioning.job import CaptionJob, JobConfig
from training.captioning.journal import JobStopped, Outcome, Usage, read_shard
from training.data.shards.sample import Sample

Make = Callable[..., Any]
KEY = "a-secret-key"
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
DAILY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "RequestsPerDayPerProject"}],
}


def pause(seconds: str) -> dict[str, str]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": seconds}


@pytest.fixture
def open_gemini(stand_in: StandIn, clock: FakeClock) -> Iterator[Make]:
    """Open a captioner that calls the stand-in and waits on the fake clock."""
    with ExitStack() as stack:

        def make(
            *, config: GeminiConfig | None = None, url: str = stand_in.url, **limits: Any
        ) -> GeminiCaptioner:
            chosen = GeminiLimits(**{"timeout_s": 20.0, "max_in_flight": 3, **limits})
            client = stack.enter_context(open_client(KEY, chosen, base_url=url))
            return GeminiCaptioner(config or GeminiConfig(), chosen, client, clock=clock)

        yield make


def by_key(answers: Iterator[list[Outcome]]) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcomes in answers for outcome in outcomes}


def test_a_request_holds_the_image_the_texts_and_the_settings(
    open_gemini: Make, stand_in: StandIn
) -> None:
    [sample] = make_samples(0, 1)
    sample = replace(sample, captions={**sample.captions, "paligemma": "a  square\nof colour"})
    config = GeminiConfig(
        max_words=33,
        max_output_tokens=120,
        temperature=0.5,
        seed=9,
        image_resolution="low",
        thinking="minimal",
    )
    list(open_gemini(config=config).caption([sample]))
    [request] = stand_in.requests
    image, text = request["contents"][0]["parts"]
    assert "image/png" in image["inlineData"].values()
    assert base64.urlsafe_b64decode(image["inlineData"]["data"]) == sample.image
    assert "at most 33 words" in text["text"]
    assert text["text"].endswith("Alt text: alt of k000\nShort caption: a square of colour")
    # The service reads either spelling of a field, and the client's releases differ in this one.
    [level] = request["generationConfig"].pop("thinkingConfig").values()
    assert level == "MINIMAL"
    assert request["generationConfig"] == {
        "maxOutputTokens": 120,
        "temperature": 0.5,
        "seed": 9,
        "mediaResolution": "MEDIA_RESOLUTION_LOW",
    }
    assert stand_in.paths == ["/v1beta/models/gemini-3.5-flash-lite:generateContent"]
    headers = {name.lower(): value for name, value in stand_in.headers[0].items()}
    assert headers["x-goog-api-key"] == KEY


def test_pauses_are_as_long_as_the_service_asks(
    open_gemini: Make, stand_in: StandIn, clock: FakeClock
) -> None:
    busy = refused(429, "RESOURCE_EXHAUSTED", details=[pause("31.5s")])
    stand_in.plan["k000"] = [busy, refused(503, "UNAVAILABLE", retry_after="40")]
    found = by_key(open_gemini().caption(make_samples(0, 1)))
    assert found["k000"].caption == "a long caption of k000"
    long = [pause for pause in clock.slept_s if pause > 30]
    assert 31.5 <= long[0] <= 31.5 + 2
    assert 40 <= long[1] <= 40 + 4


def test_a_pause_for_one_request_holds_all(
    open_gemini: Make, stand_in: StandIn, clock: FakeClock
) -> None:
    stand_in.plan["k000"] = [refused(429, "RESOURCE_EXHAUSTED", details=[pause("50s")])]
    began_s, arrived_s = clock.now(), []
    stand_in.on_request = lambda count: arrived_s.append(clock.now() - began_s)
    list(open_gemini(max_in_flight=1).caption(make_samples(0, 2)))
    assert arrived_s[0] == 0
    assert min(arrived_s[1:]) >= 50


def test_failures_that_may_pass_are_tried_again(open_gemini: Make, stand_in: StandIn) -> None:
    busy = [refused(status, "BUSY") for status in (408, 500, 502, 503, 504)]
    stand_in.plan["k000"] = [*busy, Reply(body=b"<html>")]
    assert by_key(open_gemini(max_attempts=7).caption(make_samples(0, 1)))["k000"].caption
    assert len(stand_in.requests) == 7


def test_lasting_failures_are_left_to_another_run(open_gemini: Make, stand_in: StandIn) -> None:
    stand_in.plan["k001"] = [refused(503, "UNAVAILABLE")] * 9
    found = by_key(open_gemini(max_attempts=3).caption(make_samples(0, 3)))
    assert stand_in.keys().count("k001") == 3
    offline = open_gemini(max_attempts=2, url="http://127.0.0.1:1")
    found |= by_key(offline.caption(make_samples(3, 1)))
    for key in ("k001", "k003"):
        failure = found[key].failure
        assert failure is not None
        assert (failure.kind, failure.is_transient) == ("unavailable", True)
    assert found["k000"].caption
    assert found["k002"].caption


def test_an_answer_after_the_timeout_is_requested_again(
    open_gemini: Make, stand_in: StandIn
) -> None:
    never_in_time = threading.Event()
    stand_in.plan["k000"] = [replace(said("too late"), waits_for=never_in_time)]
    found = by_key(open_gemini(timeout_s=0.3).caption(make_samples(0, 1)))
    never_in_time.set()
    assert found["k000"].caption == "a long caption of k000"
    assert len(stand_in.requests) == 2


def test_blocked_and_empty_answers_are_final_failures(open_gemini: Make, stand_in: StandIn) -> None:
    blocked = Reply(body={"promptFeedback": {"blockReason": "SAFETY"}})
    answers = [
        (blocked, "blocked"),
        (Reply(body={"candidates": [{"finishReason": "SAFETY"}]}), "blocked"),
        (said("", finish="STOP"), "empty"),
        (Reply(body={}), "empty"),
        (refused(400, "INVALID_ARGUMENT"), "refused"),
        (said("partly", finish="RECITATION"), "blocked"),
        (said("half a thou", finish="MAX_TOKENS"), None),
    ]
    stand_in.plan = {f"k{i:03d}": [reply] for i, (reply, _) in enumerate(answers)}
    found = by_key(open_gemini().caption(make_samples(0, 7)))
    failures = [found[f"k{i:03d}"].failure for i in range(7)]
    assert [failure and failure.kind for failure in failures] == [kind for _, kind in answers]
    assert not any(failure.is_transient for failure in failures if failure)
    assert found["k005"].usage.input_tokens == 600
    assert found["k006"].caption == "half a thou"
    assert len(stand_in.requests) == 7


def test_the_models_thoughts_are_counted_and_left_out(open_gemini: Make, stand_in: StandIn) -> None:
    parts = [{"text": "let me see", "thought": True}, {"text": "a square"}]
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 40}
    candidate = {"content": {"parts": parts}, "finishReason": "STOP"}
    stand_in.plan["k000"] = [Reply(body={"candidates": [candidate], "usageMetadata": usage})]
    outcome = by_key(open_gemini().caption(make_samples(0, 1)))["k000"]
    assert outcome.caption == "a square"
    assert outcome.usage == Usage(input_tokens=5, output_tokens=42)


@pytest.mark.parametrize(
    ("status", "name", "details", "message"),
    [
        (400, "INVALID_ARGUMENT", [BAD_KEY], "the key"),
        (403, "PERMISSION_DENIED", [], "permissions"),
        (404, "NOT_FOUND", [], "name of the model"),
        (429, "RESOURCE_EXHAUSTED", [DAILY], "quota is used up"),
        (429, "RESOURCE_EXHAUSTED", [pause("3600s")], "quota is used up"),
    ],
)
def test_errors_that_hit_every_request_stop_the_job(
    open_gemini: Make,
    stand_in: StandIn,
    status: int,
    name: str,
    details: list[dict[str, Any]],
    message: str,
) -> None:
    stand_in.plan["k004"] = [refused(status, name, details=details)]
    found: list[str] = []
    with pytest.raises(JobStopped, match=message):
        found.extend(o.key for [o] in open_gemini().caption(make_samples(0, 100)))
    # Answers that arrived are not lost, and the rest is not sent.
    assert sorted([*found, "k004"]) == sorted(stand_in.keys())
    assert len(stand_in.requests) < 100


def test_requests_in_flight_are_limited(open_gemini: Make, stand_in: StandIn) -> None:
    all_there = threading.Event()
    stand_in.default = lambda key: replace(said(key), waits_for=all_there)
    stand_in.on_request = lambda count: all_there.set() if count >= 4 else None
    list(open_gemini(max_in_flight=4).caption(make_samples(0, 12)))
    assert stand_in.most_at_once == 4


def test_samples_are_read_as_they_are_needed(open_gemini: Make) -> None:
    samples = iter(make_samples(0, 50))
    answers = open_gemini(max_in_flight=2).caption(samples)
    list(islice(answers, 3))
    assert len(list(samples)) >= 50 - 6
    answers.close()


@pytest.mark.parametrize(
    ("limits", "slept_s"), [({"requests_per_minute": 3}, 120), ({"tokens_per_minute": 1900}, 120)]
)
def test_the_accounts_limits_are_kept(
    open_gemini: Make, clock: FakeClock, limits: dict[str, int], slept_s: float
) -> None:
    # The stand-in counts 600 tokens a request and we some 170, so a minute of 1900 takes three.
    captioner = open_gemini(config=GeminiConfig(image_tokens=1), max_in_flight=1, **limits)
    list(captioner.caption(make_samples(0, 7)))
    assert sum(clock.slept_s) == pytest.approx(slept_s)


def test_a_stopped_job_resumes_to_the_same_result(
    open_gemini: Make, stand_in: StandIn, tmp_path: Path, config: JobConfig
) -> None:
    whole = replace(config, output=tmp_path / "whole")
    CaptionJob(whole, open_gemini()).run()
    asked = len(stand_in.requests)
    stand_in.plan["k003"] = [refused(403, "PERMISSION_DENIED")]
    with pytest.raises(JobStopped):
        CaptionJob(config, open_gemini()).run()
    progress = CaptionJob(config, open_gemini()).run()
    assert len(stand_in.requests) == asked + 8 + 1  # only the refused one was sent twice
    for name in ("a.tar", "b.tar"):
        assert (config.output / name).read_bytes() == (whole.output / name).read_bytes()
        for key, sample in read_shard(config.output / name):
            assert isinstance(sample, Sample)
            assert sample.captions["gemini"] == f"a long caption of {key}"
    assert progress.total.usage == Usage(input_tokens=8 * 600, output_tokens=8 * 20)


def test_the_key_is_written_and_logged_nowhere(
    open_gemini: Make,
    stand_in: StandIn,
    tmp_path: Path,
    config: JobConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    stand_in.plan["k001"] = [refused(400, "INVALID_ARGUMENT")]
    stand_in.plan["k002"] = [refused(503, "UNAVAILABLE")] * 9
    captioner = open_gemini()
    CaptionJob(config, captioner).run()
    stand_in.plan["k000"] = [refused(403, "PERMISSION_DENIED")]
    with pytest.raises(JobStopped) as stopped:
        CaptionJob(replace(config, output=tmp_path / "other"), captioner).run()
    assert KEY not in f"{stopped.value} {caplog.text} {json.dumps(captioner.settings())}"
    files = [path for folder in ("out", "other") for path in (tmp_path / folder).iterdir()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


LIMITS = GeminiLimits(max_attempts=6, first_delay_s=2, max_delay_s=10)


def failing(times: int, *, asked_s: float = 0) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is not None:
            raise Unavailable("busy", asked_s=asked_s)
        return "answer"

    return call


@pytest.mark.parametrize(
    ("failures", "asked_s", "pauses"), [(0, 0, []), (5, 0, [2, 4, 8, 10, 10]), (1, 30, [32])]
)
def test_pauses_grow_up_to_a_bound_on_top_of_what_is_asked(
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    asked_s: float,
    pauses: list[float],
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, high: high)  # the longest possible draw
    assert call_with_retries(failing(failures, asked_s=asked_s), LIMITS, clock) == "answer"
    assert clock.slept_s == pauses


def limit(clock: FakeClock, *, requests: int = 1000, tokens: int = 1_000_000) -> RateLimit:
    return RateLimit(requests_per_minute=requests, tokens_per_minute=tokens, clock=clock)


def busiest_minute(sent: list[tuple[float, int]]) -> tuple[int, int]:
    """The most requests and the most tokens in any 60 s."""
    windows = [[t for at, t in sent if start <= at < start + 60] for start, _ in sent]
    return max(map(len, windows)), max(map(sum, windows))


def test_no_minute_holds_too_much(clock: FakeClock) -> None:
    rng, rate = random.Random(0), limit(clock, requests=7, tokens=500)
    sent = []
    for _ in range(200):
        if rng.random() < 0.2:
            clock.sleep(rng.uniform(0, 90))
        tokens = rng.randint(1, 200)
        sent.append((rate.wait(tokens).at_s, tokens))
    requests, tokens = busiest_minute(sent)
    assert requests <= 7
    assert tokens <= 500
    assert requests == 7 or tokens > 400  # and it does not idle


def test_the_longest_hold_counts(clock: FakeClock) -> None:
    rate = limit(clock)
    rate.hold(7)
    rate.hold(3)
    rate.wait(1)
    assert clock.slept_s == [7]


def test_a_request_over_the_limit_of_a_minute_is_refused(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="101 tokens"):
        limit(clock, tokens=100).wait(101)
    with pytest.raises(ValueError, match="at least 1"):
        limit(clock, requests=0)


def test_threads_share_a_limit(clock: FakeClock) -> None:
    rate = limit(clock, requests=5)
    with ThreadPoolExecutor(max_workers=4) as pool:
        sent = [(request.at_s, 1) for request in pool.map(rate.wait, [1] * 20)]
    assert busiest_minute(sent)[0] == 5


def test_waiting_ends_when_the_job_does(clock: FakeClock) -> None:
    rate = limit(clock, requests=1)
    rate.wait(1)
    clock.interrupt()
    with pytest.raises(InterruptedError):
        rate.wait(1)
