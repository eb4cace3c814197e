"""The manifest accepts consistent fields, refuses others, and survives a round trip."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from model.manifest import (
    FileEntry,
    Manifest,
    ParityEntry,
    ParityLimits,
    ScoreEntry,
    check_file_name,
)

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "variant": "tiny/14",
    "embed_dim": 32,
    "native_size": 56,
    "min_size": 14,
    "max_size": 112,
    "shape_buckets": [(56, 56), (56, 70)],
    "temperature": 0.01,
    "outputs": ["patches", "text"],
    "licence": "Apache-2.0",
}
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
scores = st.builds(
    ScoreEntry,
    task=st.text(),
    split=st.text(),
    row=st.sampled_from(["student", "teacher", "random"]),
    metric=st.just("mIoU"),
    value=finite,
    low=st.none() | finite,
    high=st.none() | finite,
    count=st.integers(min_value=0),
)
parity = st.builds(
    ParityEntry,
    file=st.just("onnx/vision_model.onnx"),
    runtime=st.sampled_from(["onnx", "openvino"]),
    precision=st.sampled_from(["fp32", "bf16", "int8"]),
    reference=st.text(),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.just(56), st.just(70)), max_size=3),
    max_abs_diff=st.floats(0, 1),
    min_cosine_cls=st.none() | st.floats(-1, 1),
    min_cosine_patches=st.none() | st.floats(-1, 1),
    mask_agreement=st.none() | st.floats(0, 1),
    depth_error=st.none() | st.floats(0, 1),
    is_finite=st.booleans(),
    limits=st.builds(
        ParityLimits,
        max_abs_diff=st.none() | st.just(1e-4),
        min_mean_cosine=st.none() | st.floats(-1, 1),
    ),
)
files = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.json", fullmatch=True),
    st.builds(
        FileEntry,
        sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
        size_bytes=st.integers(min_value=0),
    ),
    max_size=3,
)


@given(
    st.lists(scores, max_size=3),
    st.lists(parity, max_size=2),
    files.filter(lambda names: "tipserve.json" not in names),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_a_manifest_survives_the_round_trip(
    some_scores: list[ScoreEntry],
    some_parity: list[ParityEntry],
    some_files: dict[str, FileEntry],
    provenance: dict[str, JsonValue],
) -> None:
    manifest = Manifest(
        **MINIMAL,
        scores=some_scores,
        parity=some_parity,
        files=some_files,
        provenance=provenance,
    )
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"native_size": 60}, "60 is no multiple of 14"),
        ({"native_size": 126}, "outside 14 to 112"),
        ({"shape_buckets": [(56, 57)]}, "57 is no multiple"),
        ({"shape_buckets": []}, "at least 1 item"),
        ({"size_multiple": 20}, "no multiple of patch_size"),
        ({"temperature": 0}, "greater than 0"),
        ({"outputs": ["depths"]}, "depths"),
        ({"name": "../up"}, "name"),
        ({"format_version": 2}, "format_version"),
        ({"patchsize": 14}, "Extra inputs"),
        ({"zero_shot": {"features": "queries"}}, "queries"),
        ({"files": {"../weights": {"sha256": "0" * 64, "size_bytes": 1}}}, "inside the package"),
        ({"files": {"weights": {"sha256": "0" * 63, "size_bytes": 1}}}, "sha256"),
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
        return Manifest(**MINIMAL, files=entries).digest

    one = digest(a="1", b="2")
    assert one == digest(b="2", a="1") == digest(**{"a": "1", "b": "2", "README.md": "3"})
    assert len({one, digest(a="1"), digest(a="2", b="1"), digest(a="1", c="2")}) == 4
