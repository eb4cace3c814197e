"""A job continues only if inputs, options and model are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tipserve_cli.bulk.output import Job, JobError, check_outputs, compare_records

Make = Callable[..., Job]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"outputs": ("cls2",)}, r'options \(outputs: was \["cls1"\], is now \["cls2"\]'),
        ({"resolution": 28}, "resolution: was null, is now 28"),
        ({"part_items": 4}, "part_items: was 3, is now 4"),
        ({"fingerprint": "g"}, "by another model"),
    ],
)
def test_a_change_is_named(
    make_job: Make, photos: Path, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(JobError, match=sentence):
        compare_records(make_job(photos).record(), make_job(photos, **change).record(), "out")


@pytest.mark.parametrize("found", [None, [], {"version": 0}])
def test_an_unreadable_record_is_refused(make_job: Make, photos: Path, found: object) -> None:
    with pytest.raises(JobError, match="--overwrite"):
        compare_records(found, make_job(photos).record(), "out")


def test_an_output_that_the_model_lacks_is_refused(make_job: Make, photos: Path) -> None:
    job = make_job(photos, outputs=("depth",))
    with pytest.raises(JobError, match="no output 'depth'; it has patches"):
        check_outputs(job.options, job.model)
