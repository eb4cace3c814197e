"""What is left to do and what was paid, after a job that was cut short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.captioning.job import CaptionJob, JobConfig, earlier_usage, pending_samples
from training.captioning.journal import Failure, Usage


@pytest.mark.parametrize(("dies_after", "left"), [(0, 8), (2, 6), (4, 4), (6, 2)])
def test_they_add_up_to_the_whole(
    tmp_path: Path,
    shards: Path,
    make_captioner: Callable[..., Any],
    killed: type[BaseException],
    dies_after: int,
    left: int,
) -> None:
    config = JobConfig(shards=shards, output=tmp_path / "out")
    with pytest.raises(killed):
        CaptionJob(config, make_captioner(batch_size=1, dies_after=dies_after)).run()
    pending = list(pending_samples(config, "paligemma"))
    assert [sample.key for sample in pending] == [f"k{i:03d}" for i in range(8 - left, 8)]
    assert earlier_usage(config) == Usage(
        input_tokens=10 * dies_after, output_tokens=3 * dies_after
    )


def test_before_the_first_run_all_is_left_and_nothing_is_written(
    tmp_path: Path, shards: Path
) -> None:
    config = JobConfig(shards=shards, output=tmp_path / "out")
    assert len(list(pending_samples(config, "paligemma"))) == 8
    assert earlier_usage(config) == Usage()
    assert not (tmp_path / "out").exists()


def test_a_failure_that_may_pass_is_still_to_do(
    tmp_path: Path, shards: Path, make_captioner: Callable[..., Any], killed: type[BaseException]
) -> None:
    config = JobConfig(shards=shards, output=tmp_path / "out")
    busy = Failure(kind="unavailable", message="", is_transient=True)
    captioner = make_captioner(batch_size=1, dies_after=2, failures={"k000": busy})
    with pytest.raises(killed):
        CaptionJob(config, captioner).run()
    pending = [sample.key for sample in pending_samples(config, "paligemma")]
    assert pending == ["k000", *(f"k{i:03d}" for i in range(2, 8))]
