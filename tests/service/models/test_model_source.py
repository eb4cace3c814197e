"""What a caller may name, and that nothing outside of the repository is ever opened."""

from pathlib import Path

import pytest

from model.package import BUNDLED_FOLDER
from service.errors import InvalidRequest, ModelNotFound, ServiceError, Unavailable
from service.models.model_source import ModelSource, check_model_name, find_package, list_packages


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
