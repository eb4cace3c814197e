"""The name of a model is a folder on this machine, or else a hub id."""

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


def test_the_kind_of_a_folder_follows_from_its_files(here: Path) -> None:
    package = folder_with(here / "package", "tipserve.json", "config.json")
    assert parse_source(str(package)) == PackageSource(str(package))
    folder_with(here / "transformers", "config.json", "model.safetensors")
    assert parse_source("transformers") == FolderSource(Path("transformers"))
    official = folder_with(here / "official", "a_vision.npz", "a_text.npz")
    assert parse_source(str(official)) == FolderSource(official)
    assert parse_source("bundled") == PackageSource("bundled")


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("google/tipsv2-b14", "google/tipsv2-b14", "main"),
        ("google/tipsv2-so400m14@v1.0", "google/tipsv2-so400m14", "v1.0"),
        ("me/own.model@refs/pr/3", "me/own.model", "refs/pr/3"),
    ],
)
def test_a_hub_id_has_an_optional_revision(text: str, repository: str, revision: str) -> None:
    source = parse_source(text)
    assert source == HubSource(repository, revision)
    assert str(source) == text


def test_an_existing_folder_takes_precedence_over_the_hub(here: Path) -> None:
    assert isinstance(parse_source("google/tipsv2-b14"), HubSource)
    (here / "google").mkdir()
    with pytest.raises(SourceError, match="no folder 'google/tipsv2-b14', although 'google' is"):
        parse_source("google/tipsv2-b14")
    assert parse_source("google/tipsv2-b14@main") == HubSource("google/tipsv2-b14")
    (here / "google").rmdir()
    folder_with(here / "google" / "tipsv2-b14", "config.json")
    assert parse_source("google/tipsv2-b14") == FolderSource(Path("google/tipsv2-b14"))


@pytest.mark.parametrize(
    "text",
    [
        *("tipsv2-b14", "./google/tipsv2-b14", "/google/tipsv2-b14", "a/b/c", "a/b@", "a/../b"),
        *("google/tips v2", "-a/b", "a/b--c", "a/b@../c", "a/b\n"),
    ],
)
def test_other_names_are_refused_with_examples(text: str) -> None:
    with pytest.raises(SourceError, match=r"'bundled'.*google/tipsv2-b14"):
        parse_source(text)


def test_a_path_without_exactly_one_model_is_refused(here: Path) -> None:
    folder_with(here / "both", "config.json", "a_vision.npz")
    folder_with(here / "none", "image.png")
    (here / "a_vision.npz").touch()
    for text, message in [
        ("both", "both a transformers checkpoint"),
        ("none", r"is not a model: .*tipserve\.json.*\.npz"),
        ("a_vision.npz", "is a file; name the folder"),
    ]:
        with pytest.raises(SourceError, match=message):
            parse_source(text)
    assert parse_checkpoint("a_vision.npz", may_be_file=True) == FolderSource(Path("a_vision.npz"))


def test_a_package_is_only_converted_to_add_precisions(here: Path) -> None:
    folder_with(here / "package", "tipserve.json")
    for text, path in (("package", Path("package")), ("bundled", BUNDLED_FOLDER)):
        with pytest.raises(SourceError, match="is a model package already"):
            parse_checkpoint(text)
        assert parse_checkpoint(text, may_be_package=True) == FolderSource(path)


def test_dense_heads_name_the_repository_of_their_model() -> None:
    dense = HubSource("google/tipsv2-b14-dpt", "v1")
    assert dense.base == HubSource("google/tipsv2-b14")
    assert dense.name == "tipsv2-b14-dpt"
    assert HubSource("google/tipsv2-b14").base is None


@pytest.mark.parametrize(
    ("text", "name"), [("my model (1)", "my-model-1"), ("..", "model"), ("\u00e4_b", "b")]
)
def test_every_name_becomes_a_valid_model_name(text: str, name: str) -> None:
    assert model_name(text) == name


def test_a_folder_gives_its_real_name(here: Path) -> None:
    folder_with(here / "student", "config.json")
    (here / "link").symlink_to("student")
    assert FolderSource(Path("link/")).name == "student"
    assert FolderSource(Path()).name == model_name(here.name)
