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


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> JobConfig:
    return JobConfig(shards=shards, output=tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def captions(shard: Path) -> dict[str, str]:
    return {
        key: sample.captions.get("paligemma", "")
        for key, sample in read_shard(shard)
        if isinstance(sample, Sample)
    }


def test_it_adds_a_clean_caption_and_changes_nothing_else(tmp_path: Path, shards: Path) -> None:
    CaptionJob(JobConfig(shards=shards, output=tmp_path / "out"), FakeCaptioner()).run()
    for name in ("a.tar", "b.tar"):
        before, after = dict(read_shard(shards / name)), dict(read_shard(tmp_path / "out" / name))
        assert list(before) == list(after)
        for key, sample in after.items():
            assert isinstance(sample, Sample)
            caption = sample.captions["paligemma"]
            assert caption.startswith(f"{key} in ")
            assert caption == " ".join(caption.split())
            rest = {s: c for s, c in sample.captions.items() if s != "paligemma"}
            assert replace(sample, captions=rest) == before[key]


@pytest.mark.parametrize("dies_after", range(8))
def test_a_killed_job_ends_like_one_that_was_not(
    tmp_path: Path, shards: Path, dies_after: int
) -> None:
    whole = JobConfig(shards=shards, output=tmp_path / "whole")
    CaptionJob(whole, FakeCaptioner(failures={"k001": BAD})).run()
    cut = JobConfig(shards=shards, output=tmp_path / "cut")
    first = FakeCaptioner(failures={"k001": BAD}, dies_after=dies_after)
    with pytest.raises(Killed):
        CaptionJob(cut, first).run()
    second = FakeCaptioner(failures={"k001": BAD})
    progress = CaptionJob(cut, second).run()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert sorted(first.seen + second.seen) == [f"k{i:03d}" for i in range(8)]
    assert (progress.total.captioned, len(progress.total.failures)) == (7, 1)


def test_a_line_cut_off_by_the_kill_is_captioned_again(tmp_path: Path, config: JobConfig) -> None:
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(dies_after=4)).run()
    journal = config.output / "a.tar.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    captioner = FakeCaptioner()
    CaptionJob(config, captioner).run()
    assert captioner.seen[:3] == ["k002", "k003", "k004"]
    CaptionJob(replace(config, output=tmp_path / "whole"), FakeCaptioner()).run()
    assert contents(config.output) == contents(tmp_path / "whole")


def test_a_shard_without_its_report_is_written_again(config: JobConfig) -> None:
    CaptionJob(config, FakeCaptioner()).run()
    expected = contents(config.output)
    (config.output / "a.tar.report.json").unlink()
    (config.output / "a.tar").write_bytes(b"half")
    CaptionJob(config, FakeCaptioner()).run()
    assert contents(config.output) == expected


def test_finished_shards_are_not_captioned_again(config: JobConfig) -> None:
    CaptionJob(config, FakeCaptioner()).run()
    again = FakeCaptioner()
    progress = CaptionJob(config, again).run()
    assert again.seen == []
    assert (progress.done, progress.total.captioned) == (2, 8)


def test_samples_that_have_a_caption_keep_it(tmp_path: Path, shard_of: Make) -> None:
    first, second = make_samples(0, 2)
    folder = shard_of([replace(first, captions={"paligemma": "mine"}), second])
    captioner = FakeCaptioner()
    progress = CaptionJob(JobConfig(shards=folder, output=tmp_path / "out"), captioner).run()
    assert captioner.seen == ["k001"]
    assert captions(tmp_path / "out" / "c.tar")["k000"] == "mine"
    assert progress.total.already == 1


def test_a_failed_sample_stays_without_a_caption_and_is_named_in_the_side_file(
    config: JobConfig,
) -> None:
    CaptionJob(config, FakeCaptioner(failures={"k003": BAD})).run()
    assert captions(config.output / "a.tar")["k003"] == ""
    report = json.loads((config.output / "a.tar.report.json").read_text())
    assert report["failures"] == [{"key": "k003", "kind": "image", "message": "broken"}]
    assert report["captioned"] == 4


def test_a_failure_that_may_pass_is_tried_again_by_the_next_run(config: JobConfig) -> None:
    failures = {"k000": PASSING, "k001": BAD}
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(batch_size=1, failures=failures, dies_after=3)).run()
    second = FakeCaptioner(batch_size=1)
    CaptionJob(config, second).run()
    assert second.seen[:3] == ["k000", "k003", "k004"]
    assert captions(config.output / "a.tar")["k000"]


def test_a_caption_of_which_cleaning_leaves_nothing_is_a_failure(
    tmp_path: Path, shard_of: Make
) -> None:
    config = JobConfig(shards=shard_of(make_samples(0, 2)), output=tmp_path / "out")
    progress = CaptionJob(config, FakeCaptioner(answer=' "\n" ')).run()
    assert [failure["kind"] for failure in progress.total.failures] == ["empty", "empty"]


def test_it_stops_when_too_much_fails_and_says_what(tmp_path: Path, shards: Path) -> None:
    config = JobConfig(
        shards=shards, output=tmp_path / "out", free_failures=1, max_failure_share=0.1
    )
    captioner = FakeCaptioner(failures={"k001": BAD, "k002": BAD})
    with pytest.raises(JobStopped, match=r"2 of 4 samples failed \(2 image\).*broken"):
        CaptionJob(config, captioner).run()
    assert captioner.seen == ["k000", "k001", "k002", "k003"]


def test_it_stops_when_all_runs_together_cost_too_much(tmp_path: Path, shards: Path) -> None:
    price = Price(input_usd=1e6, output_usd=0, as_of="2026-01-01")
    config = JobConfig(shards=shards, output=tmp_path / "out", price=price, max_cost_usd=2.5)
    one_dollar = Usage(input_tokens=1)
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


def test_a_shard_at_which_another_process_works_is_passed_over(config: JobConfig) -> None:
    (config.output).mkdir()
    captioner = FakeCaptioner()
    with Journal(config.output / "a.tar.journal"):
        progress = CaptionJob(config, captioner).run()
    assert captioner.seen == ["k005", "k006", "k007"]
    assert (progress.done, progress.busy) == (1, 1)
    assert not (config.output / "a.tar").exists()


def test_a_shard_that_changed_meanwhile_is_refused(shards: Path, config: JobConfig) -> None:
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(dies_after=2)).run()
    (shards / "b.tar").replace(shards / "a.tar")
    with pytest.raises(ValueError, match="added or removed"):
        CaptionJob(config, FakeCaptioner()).run()
    assert not (config.output / "a.tar").exists()


def test_an_entry_that_is_no_sample_is_left_out_and_reported(
    tmp_path: Path, shard_of: Make
) -> None:
    first, second = make_samples(0, 2)
    folder = shard_of([replace(first, suffix=".gif"), second])
    progress = CaptionJob(JobConfig(shards=folder, output=tmp_path / "out"), FakeCaptioner()).run()
    assert list(captions(tmp_path / "out" / "c.tar")) == ["k001"]
    assert [failure["kind"] for failure in progress.total.failures] == ["sample"]


def test_a_captioner_that_skips_a_sample_is_an_error(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match="k001"):
        CaptionJob(
            JobConfig(shards=shards, output=tmp_path / "out"), FakeCaptioner(forgets=True)
        ).run()


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("  a cat \n", "a cat"),
        ("a cat\n\n on a\tmat ", "a cat on a mat"),
        ('"a cat"', "a cat"),
        ("\u201ca cat\u201d", "a cat"),
        ("'a cat'", "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("the cat's mat", "the cat's mat"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u200b cat\x00\ufeff", "a cat"),
        ("a \x00 cat", "a cat"),
        ("a\u00a0cat", "a cat"),
        ('""', ""),
        ('"', '"'),
        (" \n ", ""),
    ],
)
def test_captions_are_cleaned(said: str, caption: str) -> None:
    assert clean_caption(said, CleaningConfig()) == caption


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("one two", "one two"),
        ("one two3", "one"),
        ("one twoo three", "one"),
        ("onetwothree", "onetwot"),
    ],
)
def test_long_captions_are_cut_at_a_word(said: str, caption: str) -> None:
    assert clean_caption(said, CleaningConfig(max_characters=7)) == caption


def good(count: int) -> list[Outcome]:
    return [Outcome(key=f"g{i}", caption="x") for i in range(count)]


def bad(count: int, kind: str = "empty") -> list[Outcome]:
    return [Outcome(key=f"b{i}", failure=Failure(kind=kind, message="why")) for i in range(count)]


def test_some_failures_are_free() -> None:
    budget = ErrorBudget(max_share=0, free_failures=3)
    budget.spend(bad(3))
    with pytest.raises(JobStopped):
        budget.spend(bad(1))


def test_beyond_them_the_share_counts() -> None:
    budget = ErrorBudget(max_share=0.1, free_failures=0)
    budget.spend(good(30))
    budget.spend(bad(3))
    with pytest.raises(JobStopped, match=r"4 of 34 .*4 empty.*b0.*why"):
        budget.spend(bad(1))


@pytest.mark.parametrize(("dies_after", "left"), [(0, 8), (2, 6), (4, 4), (6, 2)])
def test_finished_and_pending_samples_add_up_to_the_whole(
    config: JobConfig, dies_after: int, left: int
) -> None:
    with pytest.raises(Killed):
        CaptionJob(config, FakeCaptioner(batch_size=1, dies_after=dies_after)).run()
    pending = list(pending_samples(config, "paligemma"))
    assert [sample.key for sample in pending] == [f"k{i:03d}" for i in range(8 - left, 8)]
    assert earlier_usage(config) == Usage(
        input_tokens=10 * dies_after, output_tokens=3 * dies_after
    )


def test_before_the_first_run_all_is_left_and_nothing_is_written(config: JobConfig) -> None:
    assert len(list(pending_samples(config, "paligemma"))) == 8
    assert earlier_usage(config) == Usage()
    assert not (config.output).exists()


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


def test_the_input_folder_is_no_output_folder(shards: Path) -> None:
    with pytest.raises(ValueError, match="another folder"):
        JobConfig(shards=shards / "a.tar", output=shards)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CleaningConfig(max_characters=0), "max_characters"),
        (lambda: ErrorBudget(max_share=-0.1, free_failures=0), "must be"),
        (lambda: ErrorBudget(max_share=1.1, free_failures=0), "must be"),
        (lambda: ErrorBudget(max_share=0.5, free_failures=-1), "must be"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
