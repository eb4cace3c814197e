"""People see what a package is."""

from dataclasses import replace

from model.conversion.show import describe_package
from model.manifest import ParityEntry, ParityLimits
from model.package import ModelPackage


def test_everything_is_shown(tiny_package: ModelPackage) -> None:
    text = describe_package(tiny_package)
    manifest = tiny_package.manifest
    assert text.startswith(f"tiny (tiny/14), licence Apache-2.0, in {tiny_package.path}\n")
    assert "56 pixels native, 14 to 224 in steps of 14" in text
    for name, entry in manifest.files.items():
        assert f"{entry.size_bytes:,} bytes  {entry.sha256[:12]}  {name}\n" in text
    for parity in manifest.parity:
        assert f"{parity.file} by {parity.runtime} in {parity.precision}: difference " in text
    assert "name: none" in text.partition("provenance")[2]


def test_what_failed_is_told_apart(tiny_package: ModelPackage) -> None:
    entry = ParityEntry(
        file="onnx/vision_model.onnx",
        runtime="openvino",
        precision="bf16",
        reference="torch",
        sizes=[(1, 56, 56)],
        max_abs_diff=0.5,
        depth_error=0.0125,
        normals_degrees=0.5,
        mask_agreement=0.9,
        limits=ParityLimits(min_mask_agreement=0.995),
    )
    passed = entry.model_copy(update={"mask_agreement": 1.0})
    manifest = tiny_package.manifest.model_copy(update={"parity": [entry, passed]})
    text = describe_package(replace(tiny_package, manifest=manifest))
    assert "same mask 0.900000, depth 1.25 % off, normals 0.5 degrees off; not to be used" in text
    assert "mask_agreement is 0.9, min_mask_agreement 0.995" in text
    assert text.count("not to be used") == 1
