"""A name leads to one thing, what exists here before the hub, or the message says what to do."""

from pathlib import Path

import pytest

from model.conversion.errors import SourceError
from model.conversion.source import (
    FolderSource,
    HubSource,
    PackageSource,
    model_name,
    parse_checkpoint,
    parse_source,
)
from model.package import BUNDLED_FOLDER


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_in_a_folder_says_what_it_is(here: Path) -> None:
    package = folder_with(here / "package", "tipserve.json", "config.json")
    assert parse_source(str(package)) == PackageSource(str(package))
    transformers = folder_with(here / "transformers", "config.json", "model.safetensors")
    assert parse_source("transformers") == FolderSource(Path("transformers"))
    official = folder_with(here / "official", "a_vision.npz", "a_text.npz")
    assert parse_source(str(official)) == FolderSource(official)
    assert parse_source("bundled") == PackageSource("bundled")
    assert transformers.is_dir()


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("google/tipsv2-b14", "google/tipsv2-b14", "main"),
        ("google/tipsv2-so400m14@v1.0", "google/tipsv2-so400m14", "v1.0"),
        ("me/own.model@refs/pr/3", "me/own.model", "refs/pr/3"),
    ],
)
def test_an_id_of_the_hub(text: str, repository: str, revision: str) -> None:
    source = parse_source(text)
    assert source == HubSource(repository, revision)
    assert str(source) == text


def test_a_folder_wins_over_the_hub_if_it_exists(here: Path) -> None:
    assert isinstance(parse_source("google/tipsv2-b14"), HubSource)
    folder_with(here / "google" / "tipsv2-b14", "config.json")
    assert parse_source("google/tipsv2-b14") == FolderSource(Path("google/tipsv2-b14"))


@pytest.mark.parametrize(
    "text",
    [
        *("tipsv2-b14", "./google/tipsv2-b14", "/google/tipsv2-b14", "a/b/c", "a/b@", "a/../b"),
        *("google/tips v2", "-a/b", "a/b--c", "", "a/b@../c", "a/b\n"),
    ],
)
def test_other_names_are_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text or "nothing")
    assert "google/tipsv2-b14" in str(caught.value)
    assert "'bundled'" in str(caught.value)


def test_a_folder_of_two_models_is_refused(here: Path) -> None:
    folder_with(here / "both", "config.json", "a_vision.npz")
    with pytest.raises(SourceError, match=r"both a transformers checkpoint .*to another folder"):
        parse_source("both")


def test_a_folder_of_no_model_is_refused(here: Path) -> None:
    folder_with(here / "none", "image.png")
    with pytest.raises(SourceError, match=r"is not a model: .*tipserve\.json.*\.npz"):
        parse_source("none")


def test_a_file_is_refused(here: Path) -> None:
    (here / "a_vision.npz").touch()
    with pytest.raises(SourceError, match="is a file; name the folder"):
        parse_source("a_vision.npz")
    assert parse_checkpoint("a_vision.npz", may_be_file=True) == FolderSource(Path("a_vision.npz"))


def test_a_package_is_not_converted(here: Path) -> None:
    folder_with(here / "package", "tipserve.json")
    with pytest.raises(SourceError, match="is a model package already"):
        parse_checkpoint("package")
    with pytest.raises(SourceError, match=r"with --precision"):
        parse_checkpoint("bundled")


def test_a_package_may_get_further_precisions(here: Path) -> None:
    folder_with(here / "package", "tipserve.json")
    assert parse_checkpoint("package", may_be_package=True) == FolderSource(Path("package"))
    assert parse_checkpoint("bundled", may_be_package=True) == FolderSource(BUNDLED_FOLDER)


def test_dense_heads_stand_on_the_model_beside_them() -> None:
    dense = HubSource("google/tipsv2-b14-dpt", "v1")
    assert dense.base == HubSource("google/tipsv2-b14")
    assert dense.name == "tipsv2-b14-dpt"
    assert HubSource("google/tipsv2-b14").base is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("tipsv2-b14", "tipsv2-b14"), ("my model (1)", "my-model-1"), ("..", "model"), ("ä_b", "b")],
)
def test_every_folder_gives_a_name(text: str, name: str) -> None:
    assert model_name(text) == name


def test_a_folder_is_named_as_it_is_called(here: Path) -> None:
    folder_with(here / "student", "config.json")
    (here / "link").symlink_to("student")
    assert FolderSource(Path("student")).name == FolderSource(Path("link/")).name == "student"
    assert FolderSource(Path()).name == model_name(here.name)
