"""A source is downloaded and converted once, by one process, and found in the cache later."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model.conversion import errors as errors_module
from model.conversion import prepare as prepare_module
from model.conversion.cache import PackageCache
from model.conversion.convert import ConversionRequest
from model.conversion.errors import HubUnreachableError, MissingExtraError
from model.conversion.prepare import Preparer
from model.conversion.source import FolderSource, HubSource
from model.package import ModelPackage, open_package
from tests.model.conversion.hub_stand_in import COMMIT, Hub

B14 = ConversionRequest(base=HubSource("google/tipsv2-b14"))
L14 = ConversionRequest(base=HubSource("google/tipsv2-l14"))


class Converter:
    """Copies a package instead of converting, and records the requests."""

    def __init__(self, package: Path, cache: PackageCache) -> None:
        self.converted: list[ConversionRequest] = []
        self.warnings: list[str] = []
        self.fault: Exception | None = None
        self.cache = cache
        self.preparer = Preparer(cache, lambda _: None, self.warnings.append)
        self.package = package

    def convert(self, final: ConversionRequest, output: Path, _: Any) -> ModelPackage:
        self.converted.append(final)
        if self.fault is not None:
            (output.parent / f".{output.name}.half").mkdir()
            raise self.fault
        shutil.copytree(self.package, output)
        return open_package(output)


@pytest.fixture
def converter(
    tiny_package: ModelPackage, cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> Converter:
    made = Converter(tiny_package.path, cache)
    monkeypatch.setattr(prepare_module, "convert", made.convert)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def request_(source: Path) -> ConversionRequest:
    return ConversionRequest(base=FolderSource(source))


def test_a_folder_is_converted_once_for_each_content_and_precision(
    converter: Converter, request_: ConversionRequest, source: Path
) -> None:
    first = converter.preparer.prepare(request_)
    assert first.path.parent == converter.cache.root / "packages"
    assert first.path.name.startswith("student-")
    for verify in (True, False):
        assert converter.preparer.prepare(request_, verify=verify) == first
    (final,) = converter.converted
    assert (final.name, final.provenance) == ("student", {"source": {"folder": "student"}})
    (source / "config.json").write_bytes(b"[]")
    changed = converter.preparer.prepare(request_)
    more = ConversionRequest(base=request_.base, precisions=("fp32", "fp16"))
    heads = ConversionRequest(base=request_.base, dense=request_.base)
    others = [converter.preparer.prepare(other) for other in (more, heads)]
    assert len({package.path for package in (first, changed, *others)}) == 4
    assert len(converter.converted) == 4
    assert converter.converted[-1].provenance["dense_source"] == {"folder": "student"}


def test_a_broken_package_is_converted_again_with_a_warning(
    converter: Converter, request_: ConversionRequest
) -> None:
    package = converter.preparer.prepare(request_)
    graph = package.file("onnx/vision_model.onnx")
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    assert converter.preparer.prepare(request_, verify=False).path == package.path
    assert not converter.warnings
    assert converter.preparer.prepare(request_) == package
    assert len(converter.converted) == 2
    (warning,) = converter.warnings
    assert "was broken and is converted again" in warning
    assert open_package(package.path) == package
    (package.path / "tipserve.json").unlink()
    assert converter.preparer.prepare(request_, verify=False) == package


def test_what_another_process_has_made_meanwhile_is_not_made_again(
    converter: Converter, request_: ConversionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = PackageCache.writing

    def after_another(cache: PackageCache, name: str, key: str, progress: Any) -> Any:
        shutil.copytree(converter.package, cache.folder(name, key))
        return writing(cache, name, key, progress)

    monkeypatch.setattr(PackageCache, "writing", after_another)
    assert converter.preparer.prepare(request_).path.parent == converter.cache.root / "packages"
    assert not converter.converted


def test_a_model_of_the_hub_is_converted_once_for_each_commit(
    converter: Converter, hub: Hub
) -> None:
    converter.preparer.prepare(B14)
    (final,) = converter.converted
    assert (final.name, final.dense) == ("tipsv2-b14", None)
    assert final.base == HubSource("google/tipsv2-b14", COMMIT)
    pinned = {"repository": "google/tipsv2-b14", "commit": COMMIT}
    assert final.provenance == {"source": {**pinned, "revision": "main"}}
    hub.asked.clear()
    converter.preparer.prepare(B14)
    assert hub.asked == [("HEAD", "/google/tipsv2-b14/resolve/main/config.json")]
    hub.asked.clear()
    converter.preparer.prepare(ConversionRequest(base=HubSource("google/tipsv2-b14", COMMIT)))
    assert not hub.asked
    hub.commits["main"] = "e" * 40
    converter.preparer.prepare(B14)
    assert [str(final.base)[-40:] for final in converter.converted] == [COMMIT, "e" * 40]


@pytest.mark.usefixtures("hub")
def test_a_cached_package_is_found_offline_and_without_the_extra(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = converter.preparer.prepare(B14)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(constants.HF_HUB_CACHE)
    (converter.cache.root / "revisions").chmod(0o500)
    assert converter.preparer.prepare(B14) == package
    assert COMMIT in converter.warnings[0]
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        converter.preparer.prepare(L14)
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    assert converter.preparer.prepare(B14) == package
    with pytest.raises(MissingExtraError, match=r"'\.\[convert\]'"):
        converter.preparer.prepare(L14)
    assert len(converter.converted) == 1


def test_write_makes_a_package_outside_of_the_cache_and_replaces_nothing_else(
    converter: Converter, request_: ConversionRequest, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is no model package; choose another folder"):
        converter.preparer.write(request_, source)
    assert not converter.converted
    request_ = ConversionRequest(base=request_.base, name="other")
    package = converter.preparer.write(request_, tmp_path / "out")
    assert package.path == tmp_path / "out"
    assert converter.converted[0].name == "other"
    assert not converter.cache.root.exists()
