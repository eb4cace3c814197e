"""A source is fetched and converted once, by one process, and found there after; never half."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model.conversion import errors as errors_module
from model.conversion import prepare as prepare_module
from model.conversion.cache import PackageCache
from model.conversion.convert import ConversionRequest
from model.conversion.errors import ConversionError, HubUnreachableError, MissingExtraError
from model.conversion.prepare import Preparer
from model.conversion.source import FolderSource, HubSource
from model.package import ModelPackage, open_package
from tests.model.conversion.hub_stand_in import COMMIT, Hub

B14 = HubSource("google/tipsv2-b14")


class Workshop:
    """Stands in the place of the conversion: copies a package, and counts."""

    def __init__(self, package: Path, cache: PackageCache) -> None:
        self.converted: list[ConversionRequest] = []
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self.fault: Exception | None = None
        self.cache = cache
        self.preparer = Preparer(cache, self.steps.append, self.warnings.append)
        self._package = package

    def convert(self, final: ConversionRequest, output: Path, progress: Any) -> ModelPackage:
        progress("converting")
        self.converted.append(final)
        if self.fault is not None:
            (output.parent / f".{output.name}.half").mkdir()
            raise self.fault
        shutil.copytree(self._package, output)
        return open_package(output)


@pytest.fixture
def workshop(
    tiny_package: ModelPackage, cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    made = Workshop(tiny_package.path, cache)
    monkeypatch.setattr(prepare_module, "convert", made.convert)
    return made


@pytest.fixture
def request_(tmp_path: Path) -> ConversionRequest:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return ConversionRequest(base=FolderSource(folder))


def test_a_folder_is_converted_once(workshop: Workshop, request_: ConversionRequest) -> None:
    first = workshop.preparer.prepare(request_)
    assert first.path.parent == workshop.cache.root / "packages"
    assert first.path.name.startswith("student-")
    for verify in (True, False):
        assert workshop.preparer.prepare(request_, verify=verify) == first
    assert len(workshop.converted) == 1
    assert workshop.converted[0].name == "student"
    assert workshop.converted[0].provenance == {"source": {"folder": "student"}}


def test_what_has_changed_is_converted_anew(
    workshop: Workshop, request_: ConversionRequest
) -> None:
    before = workshop.preparer.prepare(request_)
    assert isinstance(request_.base, FolderSource)
    (request_.base.path / "config.json").write_bytes(b"[]")
    assert workshop.preparer.prepare(request_).path != before.path
    more = ConversionRequest(base=request_.base, precisions=("fp32", "fp16"))
    workshop.preparer.prepare(more)
    assert [final.precisions for final in workshop.converted] == [
        *(("fp32",), ("fp32",), ("fp32", "fp16"))
    ]


def test_a_failure_leaves_nothing_that_is_taken_for_a_package(
    workshop: Workshop, request_: ConversionRequest
) -> None:
    workshop.fault = ValueError("a graph differs")
    for _ in range(2):
        with pytest.raises(ValueError, match="a graph differs"):
            workshop.preparer.prepare(request_)
    workshop.fault = None
    package = workshop.preparer.prepare(request_)
    # What the failures left is gone as well.
    assert [path.name for path in package.path.parent.iterdir()] == [package.path.name]


def test_a_broken_package_is_made_anew_with_a_warning(
    workshop: Workshop, request_: ConversionRequest
) -> None:
    package = workshop.preparer.prepare(request_)
    graph = package.file("onnx/vision_model.onnx")
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    assert workshop.preparer.prepare(request_, verify=False).path == package.path
    assert not workshop.warnings
    assert workshop.preparer.prepare(request_) == package
    assert len(workshop.converted) == 2
    assert len(workshop.warnings) == 1
    assert "was broken and is converted again" in workshop.warnings[0]
    assert open_package(package.path) == package
    (package.path / "tipserve.json").unlink()  # and so is one without a manifest
    assert workshop.preparer.prepare(request_, verify=False) == package


SECOND = """
import sys
from pathlib import Path
from model.conversion import prepare
from model.conversion.cache import PackageCache
from model.conversion.source import FolderSource

def convert(*_):
    raise AssertionError("it was converted twice")

prepare.convert = convert
said = lambda text: print(text, flush=True)
preparer = prepare.Preparer(PackageCache(Path(sys.argv[1])), said, said)
request_ = prepare.ConversionRequest(base=FolderSource(Path(sys.argv[2])))
print(preparer.prepare(request_).path, flush=True)
"""


def test_a_second_process_waits_and_takes_what_the_first_made(
    workshop: Workshop, request_: ConversionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(request_.base, FolderSource)
    command = [sys.executable, "-c", SECOND, str(workshop.cache.root), str(request_.base.path)]
    seconds: list[subprocess.Popen[str]] = []

    def convert(final: ConversionRequest, output: Path, progress: Any) -> ModelPackage:
        # The lock is held here, and until the second has said that it waits.
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seconds.append(second)
        assert second.stdout is not None
        line = second.stdout.readline()
        while not line.startswith("waiting for process"):
            assert line, "the second process ended"
            line = second.stdout.readline()
        return workshop.convert(final, output, progress)

    monkeypatch.setattr(prepare_module, "convert", convert)
    try:
        package = workshop.preparer.prepare(request_)
        said, _ = seconds[0].communicate(timeout=60)
    finally:
        for second in seconds:
            second.kill()
            second.communicate()
    assert said.splitlines()[-1] == str(package.path)
    assert len(workshop.converted) == 1


def test_a_model_of_the_hub_is_pinned_to_its_commit(workshop: Workshop, hub: Hub) -> None:
    workshop.preparer.prepare(ConversionRequest(base=B14))
    (final,) = workshop.converted
    assert final.name == "tipsv2-b14"
    assert final.dense is None
    assert final.provenance == {
        "source": {"repository": B14.repository, "commit": COMMIT, "revision": "main"}
    }
    assert final.base.name == COMMIT
    hub.asked.clear()
    workshop.preparer.prepare(ConversionRequest(base=B14))
    assert [path for _, path, _ in hub.asked] == [f"/api/models/{B14.repository}/revision/main"]
    hub.asked.clear()
    workshop.preparer.prepare(ConversionRequest(base=HubSource(B14.repository, COMMIT)))
    assert not hub.asked
    assert len(workshop.converted) == 1


def test_a_new_commit_is_converted_anew(workshop: Workshop, hub: Hub) -> None:
    workshop.preparer.prepare(ConversionRequest(base=B14))
    hub.commits["main"] = "e" * 40
    workshop.preparer.prepare(ConversionRequest(base=B14))
    assert [final.base.name for final in workshop.converted] == [COMMIT, "e" * 40]


def test_dense_heads_bring_the_model_they_stand_on(workshop: Workshop, hub: Hub) -> None:
    dense = HubSource("google/tipsv2-b14-dpt")
    package = workshop.preparer.prepare(ConversionRequest(base=dense))
    (final,) = workshop.converted
    assert final.name == "tipsv2-b14-dpt"
    assert isinstance(final.dense, FolderSource)
    assert isinstance(final.base, FolderSource)
    assert "models--google--tipsv2-b14-dpt" in final.dense.path.parts
    assert "models--google--tipsv2-b14" in final.base.path.parts
    assert final.provenance["dense_source"] == {
        **{"repository": dense.repository, "commit": COMMIT, "revision": "main"}
    }
    assert package.path != workshop.preparer.prepare(ConversionRequest(base=B14)).path
    with pytest.raises(ConversionError, match="has dense heads already"):
        workshop.preparer.prepare(ConversionRequest(base=dense, dense=dense))
    assert hub.asked


def test_offline_what_is_here_is_served(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(ConversionRequest(base=B14))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(constants.HF_HUB_CACHE)  # the package alone is enough
    assert workshop.preparer.prepare(ConversionRequest(base=B14)) == package
    assert len(workshop.converted) == 1
    assert COMMIT in workshop.warnings[0]
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        workshop.preparer.prepare(ConversionRequest(base=HubSource("google/tipsv2-l14")))
    assert hub.asked


def test_without_the_extra_what_is_here_is_served(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(ConversionRequest(base=B14))
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    assert workshop.preparer.prepare(ConversionRequest(base=B14)) == package
    with pytest.raises(MissingExtraError, match=r"tipserve\[convert\]"):
        workshop.preparer.prepare(ConversionRequest(base=HubSource("google/tipsv2-b14-dpt")))
    assert hub.asked


def test_a_cache_that_can_only_be_read_is_enough(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(ConversionRequest(base=B14))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(PackageCache, "remember_commit", refuse)
    assert workshop.preparer.prepare(ConversionRequest(base=B14)) == package
    assert not workshop.warnings
    shutil.rmtree(workshop.cache.root / "revisions")
    assert workshop.preparer.prepare(ConversionRequest(base=B14)) == package
    (warning,) = workshop.warnings
    assert "Read-only file system" in warning
    assert hub.asked


def test_a_folder_of_the_users_is_not_written_over(
    workshop: Workshop, request_: ConversionRequest, tmp_path: Path
) -> None:
    assert isinstance(request_.base, FolderSource)
    with pytest.raises(ValueError, match="is no model package; choose another folder"):
        workshop.preparer.write(request_, request_.base.path)
    assert not workshop.converted
    package = workshop.preparer.write(
        ConversionRequest(base=request_.base, name="other"), tmp_path / "out"
    )
    assert package.path == tmp_path / "out"
    assert workshop.converted[0].name == "other"
    assert not workshop.cache.root.exists()
