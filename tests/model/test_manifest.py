"""The manifest accepts consistent fields and refuses others."""

from typing import Any

import pytest
from pydantic import ValidationError

from model.manifest import Manifest, ParityEntry, ParityLimits, check_file_name
from tests.model.test_package import DRAFT

MINIMAL: dict[str, Any] = DRAFT.model_dump()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"native_size": 60}, "60 is no multiple of 14"),
        ({"native_size": 126}, "outside 14 to 112"),
        ({"shape_buckets": [(56, 57)]}, "57 is no multiple"),
        ({"size_multiple": 20}, "no multiple of patch_size"),
        ({"format_version": 2}, "format_version"),
        ({"patchsize": 14}, "Extra inputs"),
        ({"files": {"../weights": {"sha256": "0" * 64, "size_bytes": 1}}}, "inside the package"),
        ({"files": {"weights": {"sha256": "0" * 63, "size_bytes": 1}}}, "sha256"),
        ({"taps": "embeddings", "num_taps": 2}, "have one tap"),
    ],
)
def test_wrong_fields_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Manifest(**{**MINIMAL, **change})


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/../b", "/a", "a//b", "./a", "a/", "a\\b", "c:/a", "tipserve.json"],
)
def test_only_plain_relative_file_names_are_accepted(name: str) -> None:
    for good in ("a", "onnx/vision_model.onnx", ".hidden", "a b", "..a"):
        check_file_name(good)
    with pytest.raises(ValueError, match="file name"):
        check_file_name(name)


GOOD: dict[str, Any] = {
    "file": "onnx/vision_model.onnx",
    "runtime": "openvino",
    "precision": "bf16",
    "reference": "torch",
    "sizes": [(1, 56, 56)],
    "max_abs_diff": 0.1,
    "min_cosine_cls": 0.999,
    "mean_cosine_cls": 0.9999,
    "min_cosine_patches": 0.998,
    "mask_agreement": 0.996,
    "limits": ParityLimits(min_cosine=0.998, min_mean_cosine=0.999, min_mask_agreement=0.995),
}


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({}, None),
        ({"min_cosine_patches": None}, None),
        ({"min_cosine_patches": 0.9979}, "min_cosine_patches is 0.9979, min_cosine 0.998"),
        ({"min_cosine_cls": 0.5}, "min_cosine_cls is 0.5"),
        ({"mask_agreement": 0.9949}, "mask_agreement is 0.9949, min_mask_agreement 0.995"),
        ({"mask_agreement": None}, "min_mask_agreement 0.995 has nothing measured"),
        ({"is_finite": False}, "not finite"),
        ({"limits": ParityLimits()}, "no limit"),
        ({"limits": ParityLimits(max_abs_diff=0.1)}, None),
        ({"limits": ParityLimits(max_abs_diff=0.09)}, "max_abs_diff is 0.1"),
        ({"limits": ParityLimits(max_depth_error=0.1), "depth_error": 0.2}, "depth_error is 0.2"),
    ],
)
def test_an_entry_passes_when_every_limit_has_a_number_that_keeps_it(
    change: dict[str, Any], failure: str | None
) -> None:
    entry = ParityEntry(**{**GOOD, **change})
    assert entry.passed == (failure is None)
    assert failure is None or failure in entry.failures[0]


def test_the_digest_depends_on_the_files_but_not_on_the_card() -> None:
    def digest(**files: str) -> str:
        entries = {name: {"sha256": first * 64, "size_bytes": 1} for name, first in files.items()}
        return Manifest(**MINIMAL | {"files": entries}).digest

    one = digest(a="1", b="2")
    assert one == digest(b="2", a="1") == digest(**{"a": "1", "b": "2", "README.md": "3"})
    assert len({one, digest(a="1"), digest(a="2", b="1"), digest(a="1", c="2")}) == 4
