"""A captioning job: cleaning, failures, consent, resuming, and the files that it writes."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.fakes import FakeCaptioner, Killed, make_samples
from training.captioning.cost import CostEstimate, Price
from training.captioning.job import (
    CaptionJob,
    CleaningConfig,
    ErrorBudget,
    JobConfig,
    ask_consent,
    clean_caption,
    earlier_usage,
    pending_samples,
)
from training.captioning.journal import Failure, JobStopped, Journal, Outcome, Usage, read_shard
from training.data.shards.sample import Sample

Make = Callable[..., Any]
BAD = Failure(kind="image", message="broken")
PASSING = Failure(kind="unavailable", message="busy", is_transient=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def captions(shard: Path) -> dict[str, str]:
    return {
        key: sample.captions.get("paligemma", "")
        for key, sample in read_shard(shard)
        if isinstance(sample, Sample)
    }


def test_it_adds_a_clean_caption_and_changes_nothing_else(config: JobConfig) -> None:
    CaptionJob(config, FakeCaptioner()).run()
    for name in ("a.tar", "b.tar"):
        before, after = (dict(read_shard(f / name)) for f in (config.shards, config.output))
        assert list(before) == list(after)
        for key, sample in after.items():
            assert isinstance(sample, Sample)
            caption = sample.captions["paligemma"]
            assert caption.startswith(f"{key} in ")
            assert caption == " ".join(caption.split())
            rest = {s: c for s, c in sample.captions.items() if s != "paligemma"}
            assert replace(sample, captions=rest) == before[key]


@pytest.mark.parametrize("dies_after", [0, 2, 5, 7])
def test_a_killed_job_ends_like_one_that_was_not(
    tmp_path: Path, config: JobConfig, dies_after: int
) -> None:
    whole = replace(config, output=tmp_path / "whole")
    CaptionJob(whole, FakeCaptioner(failures={"k001": BAD})).run()
    first = FakeCaptioner(failures={"k001": BAD}, dies_after=dies_after)
    with pytest.raises(Killed):
        CaptionJob(config, first).run()
    second = FakeCaptioner(failures={"k001": BAD})
    progress = CaptionJob(config, second).run()
    assert contents(config.output) == contents(whole.output)
    assert sorted(first.seen + second.seen) == [f"k{i:03d}" for i in range(8)]
    assert (progress.total.captioned, len(progress.total.failures)) == (7, 1)


def test_a_finished_shard_is_captioned_again_only_without_its_report(config: JobConfig) -> None:
    CaptionJob(config, FakeCaptioner()).run()
    expected, again = contents(config.output), FakeCaptioner()
    progress = CaptionJob(config, again).run()
    assert again.seen == []
    assert (progress.done, progress.total.captioned) == (2, 8)
    (config.output / "a.tar.report.json").unlink()
    (config.output / "a.tar").write_bytes(b"half")
    CaptionJob(config, FakeCaptioner()).run()
    assert contents(config.output) == expected


def test_samples_keep_a_caption_that_they_have(tmp_path: Path, shard_of: Make) -> None:
    first, second = make_samples(0, 2)
    folder = shard_of([replace(first, captions={"paligemma": "mine"}), second])
    captioner = FakeCaptioner()
    progress = CaptionJob(JobConfig(shards=folder, output=tmp_path / "out"), captioner).run()
    assert captioner.seen == ["k001"]
    assert captions(tmp_path / "out/c.tar")["k000"] == "mine"
    assert progress.total.already == 1


def test_failures_are_reported_beside_the_shard(tmp_path: Path, shard_of: Make) -> None:
    first, *rest = make_samples(0, 3)
    folder = shard_of([replace(first, suffix=".gif"), *rest])
    config = JobConfig(shards=folder, output=tmp_path / "out")
    CaptionJob(config, FakeCaptioner(failures={"k001": BAD})).run()
    found = captions(config.output / "c.tar")
    assert list(found) == ["k001", "k002"]  # an entry without an image is left out
    assert found["k001"] == ""
    report = json.loads((config.output / "c.tar.report.json").read_text())
    assert report["captioned"] == 1
    failed, unusable = report["failures"]
    assert failed == {"key": "k001", "kind": "image", "message": "broken"}
    assert (unusable["key"], unusable["kind"]) == ("k000", "sample")


def test_a_transient_failure_is_tried_again_by_the_next_run(config: JobConfig) -> None:
    failures = {"k000": PASSING, "k001": BAD}
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(batch_size=1, failures=failures, dies_after=3)).run()
    second = FakeCaptioner(batch_size=1)
    CaptionJob(config, second).run()
    assert second.seen[:3] == ["k000", "k003", "k004"]
    assert captions(config.output / "a.tar")["k000"]


def test_a_caption_that_is_empty_after_cleaning_is_a_failure(config: JobConfig) -> None:
    progress = CaptionJob(config, FakeCaptioner(answer=' "\n" ')).run()
    assert [failure["kind"] for failure in progress.total.failures] == ["empty"] * 8


def test_it_stops_when_too_many_samples_fail(config: JobConfig) -> None:
    captioner = FakeCaptioner(failures={"k001": BAD, "k002": BAD})
    with pytest.raises(JobStopped, match=r"2 of 4 samples failed \(2 image\).*broken"):
        CaptionJob(replace(config, free_failures=1, max_failure_share=0.1), captioner).run()
    assert captioner.seen == ["k000", "k001", "k002", "k003"]


def test_it_stops_when_all_runs_together_cost_too_much(config: JobConfig) -> None:
    price = Price(input_usd=1e6, output_usd=0, as_of="2026-01-01")
    config, one_dollar = replace(config, price=price, max_cost_usd=2.5), Usage(input_tokens=1)
    with pytest.raises(JobStopped, match=r"\$4\.00"):
        CaptionJob(config, FakeCaptioner(usage=one_dollar)).run()
    second = FakeCaptioner(usage=one_dollar)
    with pytest.raises(JobStopped, match=r"\$5\.00"):
        CaptionJob(config, second).run()
    assert second.seen == ["k004"]


def test_other_settings_are_refused(config: JobConfig) -> None:
    CaptionJob(config, FakeCaptioner()).run()
    with pytest.raises(ValueError, match=r"captioner\.batch_size: 2, now 3"):
        CaptionJob(config, FakeCaptioner(batch_size=3)).run()


def test_a_shard_locked_by_another_process_is_skipped(config: JobConfig) -> None:
    config.output.mkdir()
    captioner = FakeCaptioner()
    with Journal(config.output / "a.tar.journal"):
        progress = CaptionJob(config, captioner).run()
    assert captioner.seen == ["k005", "k006", "k007"]
    assert (progress.done, progress.busy) == (1, 1)
    assert not (config.output / "a.tar").exists()


def test_a_shard_that_changes_between_runs_is_refused(config: JobConfig) -> None:
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(dies_after=2)).run()
    (config.shards / "b.tar").replace(config.shards / "a.tar")
    with pytest.raises(ValueError, match="added or removed"):
        CaptionJob(config, FakeCaptioner()).run()
    assert not (config.output / "a.tar").exists()


def test_a_captioner_that_skips_a_sample_is_an_error(config: JobConfig) -> None:
    with pytest.raises(ValueError, match="k001"):
        CaptionJob(config, FakeCaptioner(forgets=True)).run()


@pytest.mark.parametrize(
    ("answer", "max_characters", "caption"),
    [
        ("a cat\n\n on a\tmat ", 1000, "a cat on a mat"),
        ('"a cat"', 1000, "a cat"),
        ("\u201ca cat\u201d", 1000, "a cat"),
        ('"a" and "b"', 1000, '"a" and "b"'),
        ("the cat's mat", 1000, "the cat's mat"),
        ("cafe\u0301", 1000, "caf\u00e9"),
        ("a\u200b cat\x00\ufeff", 1000, "a cat"),
        ("a \x00 cat", 1000, "a cat"),
        ("a\u00a0cat", 1000, "a cat"),
        ('""', 1000, ""),
        ('"', 1000, '"'),
        ("one two", 7, "one two"),
        ("one two3", 7, "one"),
        ("one twoo three", 7, "one"),
        ("onetwothree", 7, "onetwot"),
    ],
)
def test_captions_are_cleaned_and_cut_at_a_word(
    answer: str, max_characters: int, caption: str
) -> None:
    assert clean_caption(answer, CleaningConfig(max_characters=max_characters)) == caption


@pytest.mark.parametrize(
    ("max_share", "free_failures", "num_good", "num_bad"), [(0, 3, 0, 3), (0.1, 0, 30, 3)]
)
def test_failures_are_limited_by_number_and_then_by_share(
    max_share: float, free_failures: int, num_good: int, num_bad: int
) -> None:
    bad = Outcome(key="b", failure=BAD)
    budget = ErrorBudget(max_share=max_share, free_failures=free_failures)
    budget.spend([Outcome(key="g", caption="x")] * num_good)
    budget.spend([bad] * num_bad)
    with pytest.raises(JobStopped):
        budget.spend([bad])


@pytest.mark.parametrize(("dies_after", "left"), [(0, 8), (2, 6), (6, 2)])
def test_finished_and_pending_samples_add_up_to_the_whole(
    config: JobConfig, dies_after: int, left: int
) -> None:
    assert len(list(pending_samples(config, "paligemma"))) == 8
    assert earlier_usage(config) == Usage()
    assert not config.output.exists()  # reading writes nothing
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(batch_size=1, dies_after=dies_after)).run()
    pending = list(pending_samples(config, "paligemma"))
    assert [sample.key for sample in pending] == [f"k{i:03d}" for i in range(8 - left, 8)]
    spent = Usage(input_tokens=10 * dies_after, output_tokens=3 * dies_after)
    assert earlier_usage(config) == spent


def refuse_to_answer() -> bool:
    raise AssertionError("no question should be asked")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_cost_usd": 10, "confirm": refuse_to_answer}, None),
        ({"max_cost_usd": 9, "is_agreed": True}, r"\$10\.00, over --max-cost 9"),
        ({"max_cost_usd": 11, "spent_usd": 2}, r"\$12\.00, of which \$2\.00 is already spent"),
        ({"confirm": lambda: True}, None),
        ({"confirm": lambda: False}, "nothing was sent"),
        ({}, "--yes"),
        ({"is_agreed": True, "confirm": refuse_to_answer}, None),
        ({"samples": 0}, None),
    ],
)
def test_a_job_that_costs_money_needs_consent(options: dict[str, Any], error: str | None) -> None:
    """The job costs 1 dollar, at most 10."""
    estimate = CostEstimate(
        samples=options.pop("samples", 5),
        expected=Usage(output_tokens=1),
        at_most=Usage(output_tokens=10),
        price=Price(input_usd=0, output_usd=1e6, as_of=""),
    )
    defaults = {"spent_usd": 0, "max_cost_usd": None, "is_agreed": False, "confirm": None}
    with pytest.raises(ValueError, match=error) if error else nullcontext():
        ask_consent(estimate, **{**defaults, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: CleaningConfig(max_characters=0), "max_characters"),
        (lambda _: ErrorBudget(max_share=1.1, free_failures=0), "must be"),
        (lambda _: ErrorBudget(max_share=0.5, free_failures=-1), "must be"),
        (lambda shards: JobConfig(shards=shards / "a.tar", output=shards), "another folder"),
    ],
)
def test_wrong_settings_are_refused(
    shards: Path, make: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(shards)
