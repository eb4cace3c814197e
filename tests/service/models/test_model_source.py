"""What a caller may name, and that nothing outside of the repository is ever opened."""

from pathlib import Path

import pytest

from model.package import BUNDLED_FOLDER, PackageError
from service.errors import InvalidRequest, ModelNotFound, ServiceError, Unavailable
from service.models.conversion import (
    ModelSource,
    check_model_name,
    check_names,
    find_package,
    list_packages,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("repository/a", "repository/deep/b", "repository/.hidden", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tipserve.json").touch()
    (tmp_path / "repository" / "no-package").mkdir()
    (tmp_path / "repository" / "way-out").symlink_to(tmp_path / "outside")
    (tmp_path / "repository" / "alias").symlink_to("a")
    (tmp_path / "repository" / "file").touch()
    return tmp_path / "repository"


def test_packages_below_the_repository_are_found(repository: Path) -> None:
    assert find_package(repository, "a") == str(repository / "a")
    assert find_package(repository, "deep/b") == str(repository / "deep" / "b")
    assert find_package(repository, "alias") == str(repository / "a")
    assert list_packages(repository) == ["a", "alias"]
    assert list_packages(None) == list_packages(repository / "missing") == []


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../outside", "a/../../outside", "/etc", "a//b", "a/", ".hidden", "a\0b"),
        *("a\n", "a\\b", "~", "ä", "x" * 201, "way-out", "way-out/", "missing", "no-package"),
        "file",
    ],
)
def test_nothing_else_is(repository: Path, name: str) -> None:
    with pytest.raises((InvalidRequest, ModelNotFound)) as caught:
        find_package(repository, name)
    assert str(repository.parent) not in caught.value.message


def test_an_outside_folder_is_not_told_from_one_that_is_not_there(repository: Path) -> None:
    def answer(name: str) -> str:
        with pytest.raises(ServiceError) as caught:
            find_package(repository, name)
        return caught.value.message.replace(name, "NAME")

    assert answer("way-out") == answer("missing")


def test_without_a_repository_the_setting_is_named() -> None:
    with pytest.raises(InvalidRequest, match="--model-repository"):
        find_package(None, "a")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-a", "x" * 201, "a\n"])
def test_odd_names_of_models_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_model_name(name)
    check_model_name("tips-v2.b14")


def test_reasons_lose_the_folder_and_keep_the_rest() -> None:
    source = ModelSource("/secret/place/student")
    text = source.without_paths("/secret/place/student/onnx/a.onnx is not the file")
    assert text == "student/onnx/a.onnx is not the file"
    assert str(BUNDLED_FOLDER) not in ModelSource("bundled").without_paths(f"{BUNDLED_FOLDER}/x")


def test_a_cancelled_load_ends_at_its_next_step() -> None:
    source = ModelSource("a")
    source.check()
    source.cancelled.set()
    with pytest.raises(Unavailable):
        source.check()


def test_a_setting_names_a_source_and_perhaps_a_name(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = ModelSource.from_setting("google/tipsv2-b14@v1", cache)
    assert plain == ModelSource("google/tipsv2-b14@v1", cache=cache)
    assert plain.served_name() == "tipsv2-b14"
    named = ModelSource.from_setting("second=google/tipsv2-b14", cache)
    assert named == ModelSource("google/tipsv2-b14", "second", cache=cache)
    assert named.served_name() == "second"
    (tmp_path / "a=b").mkdir()
    there = str(tmp_path / "a=b")
    assert ModelSource.from_setting(there, cache) == ModelSource(there, cache=cache)
    assert ModelSource.from_setting("bundled", cache).served_name().startswith("tipserve")


def test_two_of_one_name_are_refused_with_a_way_out(tmp_path: Path) -> None:
    sources = [
        ModelSource.from_setting(text, tmp_path)
        for text in ("google/tipsv2-b14", "bundled", "me/tipsv2-b14")
    ]
    with pytest.raises(ValueError, match=r"'tipsv2-b14'.*--model google/.*,other=me/tipsv2-b14"):
        check_names(sources)
    check_names([*sources[:2], ModelSource.from_setting("other=me/tipsv2-b14", tmp_path)])


def test_only_settings_may_name_what_has_to_be_converted(tmp_path: Path) -> None:
    assert ModelSource("google/tipsv2-b14").checkpoint() is None
    assert str(ModelSource("google/tipsv2-b14", cache=tmp_path).checkpoint()) == "google/tipsv2-b14"
    with pytest.raises(PackageError, match="not a hub id"):
        ModelSource("tipsv2-b14", cache=tmp_path).checkpoint()


def test_reasons_lose_the_cache_as_well() -> None:
    source = ModelSource("google/tipsv2-b14", cache=Path("/secret/cache"))
    text = source.without_paths("/secret/cache/packages/a-0/x.onnx is broken")
    assert text == "the cache/packages/a-0/x.onnx is broken"
