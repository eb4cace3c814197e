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
from model.conversion.convert import Recipe
from model.conversion.errors import ConversionError, HubUnreachableError, MissingExtraError
from model.conversion.prepare import Order, Preparer
from model.conversion.source import FolderSource, HubSource
from model.package import ModelPackage, open_package
from tests.model.conversion.hub_stand_in import COMMIT, Hub

B14 = HubSource("google/tipsv2-b14")


class Workshop:
    """Stands in the place of the conversion: copies a package, and counts."""

    def __init__(self, package: Path, cache: PackageCache) -> None:
        self.recipes: list[Recipe] = []
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self.fault: Exception | None = None
        self.cache = cache
        self.preparer = Preparer(cache, self.steps.append, self.warnings.append)
        self._package = package

    def convert(self, recipe: Recipe, output: Path, progress: Any) -> ModelPackage:
        progress("converting")
        self.recipes.append(recipe)
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
def order(tmp_path: Path) -> Order:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return Order(base=FolderSource(folder))


def test_a_folder_is_converted_once(workshop: Workshop, order: Order) -> None:
    first = workshop.preparer.prepare(order)
    assert first.path.parent == workshop.cache.root / "packages"
    assert first.path.name.startswith("student-")
    for verify in (True, False):
        assert workshop.preparer.prepare(order, verify=verify) == first
    assert len(workshop.recipes) == 1
    assert workshop.recipes[0].name == "student"
    assert workshop.recipes[0].provenance == {"source": {"folder": "student"}}


def test_what_has_changed_is_converted_anew(workshop: Workshop, order: Order) -> None:
    before = workshop.preparer.prepare(order)
    assert isinstance(order.base, FolderSource)
    (order.base.path / "config.json").write_bytes(b"[]")
    assert workshop.preparer.prepare(order).path != before.path
    more = Order(base=order.base, precisions=("fp32", "fp16"))
    workshop.preparer.prepare(more)
    assert [recipe.precisions for recipe in workshop.recipes] == [
        *(("fp32",), ("fp32",), ("fp32", "fp16"))
    ]


def test_a_failure_leaves_nothing_that_is_taken_for_a_package(
    workshop: Workshop, order: Order
) -> None:
    workshop.fault = ValueError("a graph differs")
    for _ in range(2):
        with pytest.raises(ValueError, match="a graph differs"):
            workshop.preparer.prepare(order)
    workshop.fault = None
    package = workshop.preparer.prepare(order)
    # What the failures left is gone as well.
    assert [path.name for path in package.path.parent.iterdir()] == [package.path.name]


def test_a_broken_package_is_made_anew_with_a_warning(workshop: Workshop, order: Order) -> None:
    package = workshop.preparer.prepare(order)
    graph = package.file("onnx/vision_model.onnx")
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    assert workshop.preparer.prepare(order, verify=False).path == package.path
    assert not workshop.warnings
    assert workshop.preparer.prepare(order) == package
    assert len(workshop.recipes) == 2
    assert len(workshop.warnings) == 1
    assert "was broken and is made anew" in workshop.warnings[0]
    assert open_package(package.path) == package
    (package.path / "tipserve.json").unlink()  # and so is one without a manifest
    assert workshop.preparer.prepare(order, verify=False) == package


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
order = prepare.Order(base=FolderSource(Path(sys.argv[2])))
print(preparer.prepare(order).path, flush=True)
"""


def test_a_second_process_waits_and_takes_what_the_first_made(
    workshop: Workshop, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(order.base, FolderSource)
    command = [sys.executable, "-c", SECOND, str(workshop.cache.root), str(order.base.path)]
    seconds: list[subprocess.Popen[str]] = []

    def convert(recipe: Recipe, output: Path, progress: Any) -> ModelPackage:
        # The lock is held here, and until the second has said that it waits.
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seconds.append(second)
        assert second.stdout is not None
        line = second.stdout.readline()
        while not line.startswith("waiting for process"):
            assert line, "the second process ended"
            line = second.stdout.readline()
        return workshop.convert(recipe, output, progress)

    monkeypatch.setattr(prepare_module, "convert", convert)
    try:
        package = workshop.preparer.prepare(order)
        said, _ = seconds[0].communicate(timeout=60)
    finally:
        for second in seconds:
            second.kill()
            second.communicate()
    assert said.splitlines()[-1] == str(package.path)
    assert len(workshop.recipes) == 1


def test_a_model_of_the_hub_is_pinned_to_its_commit(workshop: Workshop, hub: Hub) -> None:
    workshop.preparer.prepare(Order(base=B14))
    (recipe,) = workshop.recipes
    assert recipe.name == "tipsv2-b14"
    assert recipe.dense is None
    assert recipe.provenance == {
        "source": {"repository": B14.repository, "commit": COMMIT, "revision": "main"}
    }
    assert recipe.base.name == COMMIT
    hub.asked.clear()
    workshop.preparer.prepare(Order(base=B14))
    assert [path for _, path, _ in hub.asked] == [f"/api/models/{B14.repository}/revision/main"]
    hub.asked.clear()
    workshop.preparer.prepare(Order(base=HubSource(B14.repository, COMMIT)))
    assert not hub.asked
    assert len(workshop.recipes) == 1


def test_a_new_commit_is_converted_anew(workshop: Workshop, hub: Hub) -> None:
    workshop.preparer.prepare(Order(base=B14))
    hub.commits["main"] = "e" * 40
    workshop.preparer.prepare(Order(base=B14))
    assert [recipe.base.name for recipe in workshop.recipes] == [COMMIT, "e" * 40]


def test_dense_heads_bring_the_model_they_stand_on(workshop: Workshop, hub: Hub) -> None:
    dense = HubSource("google/tipsv2-b14-dpt")
    package = workshop.preparer.prepare(Order(base=dense))
    (recipe,) = workshop.recipes
    assert recipe.name == "tipsv2-b14-dpt"
    assert recipe.dense is not None
    assert "models--google--tipsv2-b14-dpt" in recipe.dense.parts
    assert "models--google--tipsv2-b14" in recipe.base.parts
    assert recipe.provenance["dense_source"] == {
        **{"repository": dense.repository, "commit": COMMIT, "revision": "main"}
    }
    assert package.path != workshop.preparer.prepare(Order(base=B14)).path
    with pytest.raises(ConversionError, match="dense heads of its own"):
        workshop.preparer.prepare(Order(base=dense, dense=dense))
    assert hub.asked


def test_offline_what_is_here_is_served(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(Order(base=B14))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(constants.HF_HUB_CACHE)  # the package alone is enough
    assert workshop.preparer.prepare(Order(base=B14)) == package
    assert len(workshop.recipes) == 1
    assert COMMIT in workshop.warnings[0]
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        workshop.preparer.prepare(Order(base=HubSource("google/tipsv2-l14")))
    assert hub.asked


def test_without_the_extra_what_is_here_is_served(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(Order(base=B14))
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    assert workshop.preparer.prepare(Order(base=B14)) == package
    with pytest.raises(MissingExtraError, match=r"tipserve\[convert\]"):
        workshop.preparer.prepare(Order(base=HubSource("google/tipsv2-b14-dpt")))
    assert hub.asked


def test_a_cache_that_can_only_be_read_is_enough(
    workshop: Workshop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = workshop.preparer.prepare(Order(base=B14))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(PackageCache, "remember_commit", refuse)
    assert workshop.preparer.prepare(Order(base=B14)) == package
    assert not workshop.warnings
    shutil.rmtree(workshop.cache.root / "revisions")
    assert workshop.preparer.prepare(Order(base=B14)) == package
    (warning,) = workshop.warnings
    assert "Read-only file system" in warning
    assert hub.asked


def test_a_folder_of_the_users_is_not_written_over(
    workshop: Workshop, order: Order, tmp_path: Path
) -> None:
    assert isinstance(order.base, FolderSource)
    with pytest.raises(ValueError, match="is no model package; choose another folder"):
        workshop.preparer.write(order, order.base.path)
    assert not workshop.recipes
    package = workshop.preparer.write(Order(base=order.base, name="other"), tmp_path / "out")
    assert package.path == tmp_path / "out"
    assert workshop.recipes[0].name == "other"
    assert not workshop.cache.root.exists()
