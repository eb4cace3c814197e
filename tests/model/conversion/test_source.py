"""The name of a model is a folder on this machine, or else a hub id."""

from pathlib import Path

import pytest

from model.conversion.errors import SourceError
from model.conversion.source import (
    FolderSource,
    HubSource,
    JoinedSource,
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


def test_a_package_is_only_converted_to_add_precisions(here: Path) -> None:
    folder_with(here / "package", "tipserve.json")
    for text, path in (("package", Path("package")), ("bundled", BUNDLED_FOLDER)):
        with pytest.raises(SourceError, match="is a model package already"):
            parse_checkpoint(text)
        assert parse_checkpoint(text, may_be_package=True) == FolderSource(path)
    dense_folder(here / "heads")
    joined = parse_checkpoint("package+heads", may_be_package=True)
    assert isinstance(joined, JoinedSource)
    assert joined.base == FolderSource(Path("package"))


def dense_folder(path: Path) -> Path:
    folder_with(path)
    (path / "config.json").write_text('{"model_type": "tipsv2_dpt"}', encoding="utf-8")
    return path


def test_dense_heads_of_the_hub_come_with_their_model() -> None:
    source = parse_source("google/tipsv2-b14-dpt@v1")
    assert source == JoinedSource(
        HubSource("google/tipsv2-b14"), HubSource("google/tipsv2-b14-dpt", "v1")
    )
    assert source.name == "tipsv2-b14-dpt"
    assert parse_source(str(source)) == source


@pytest.mark.parametrize("layout", ["transformers", "scenic"])
def test_a_folder_of_dense_heads_comes_with_the_folder_beside_it(here: Path, layout: str) -> None:
    if layout == "transformers":
        dense_folder(here / "x-dpt")
    else:
        folder_with(here / "x-dpt", "tips_v2_b14_depth_dpt.zip")
    with pytest.raises(SourceError, match=r"x-dpt holds dense heads without .*MODEL\+x-dpt"):
        parse_source("x-dpt")
    folder_with(here / "x", "config.json")
    for text in ("x-dpt", "./x-dpt/", str(here / "x-dpt")):
        source = parse_source(text)
        assert isinstance(source, JoinedSource)
        assert source.name == "x-dpt"
        assert (source.base, source.heads) == (FolderSource(here / "x"), FolderSource(Path(text)))
    (here / "x-dpt").rename(here / "heads")
    with pytest.raises(SourceError, match=r"heads holds dense heads without"):
        parse_source("heads")
    dense_folder(here / "package-dpt")
    folder_with(here / "package", "tipserve.json")
    with pytest.raises(SourceError, match=r"package, the folder beside package-dpt, is no check"):
        parse_source("package-dpt")


def test_a_model_and_dense_heads_are_joined_by_a_plus(here: Path) -> None:
    heads = FolderSource(dense_folder(here / "heads"))
    assert parse_source(f"google/tipsv2-b14@v1+{heads}") == JoinedSource(
        HubSource("google/tipsv2-b14", "v1"), heads
    )
    folder_with(here / "x", "a_vision.npz")
    source = parse_source("x+./heads")
    assert source == JoinedSource(FolderSource(Path("x")), FolderSource(Path("heads")))
    assert source.name == "x"
    folder_with(here / "x+y", "config.json")
    assert parse_source("x+y") == FolderSource(Path("x+y")), "a folder of that name comes first"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere+heads", "there is no folder 'nowhere'"),
        ("x+nowhere", "there is no folder 'nowhere'"),
        ("google/tipsv2-b14-dpt+heads", r"has dense heads already; remove \+heads"),
        ("x+", "lacks a part; write a model and dense heads as base"),
        ("+heads", "lacks a part"),
        ("bundled+heads", "is a model package already"),
        ("x+depth.zip", "is a file; name the folder"),
    ],
)
def test_a_wrong_part_is_named(here: Path, text: str, message: str) -> None:
    folder_with(here / "x", "config.json")
    dense_folder(here / "heads")
    (here / "depth.zip").touch()
    with pytest.raises(SourceError, match=message):
        parse_source(text)


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
