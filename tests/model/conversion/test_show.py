"""People see what a package is."""

from model.conversion.show import describe_package
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
