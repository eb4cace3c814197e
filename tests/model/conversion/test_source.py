"""The name of a model is a folder on this machine, or else a hub id."""

from pathlib import Path

import pytest

from model.conversion.errors import SourceError
from model.conversion.source import (
    FolderSource,
    HubSource,
    JoinedSource,
    PackageSource,
    parse_checkpoint,
    parse_source,
)
from model.package import BUNDLED_FOLDER

B14, HEADS = HubSource("google/tipsv2-b14"), HubSource("google/tipsv2-b14-dpt")


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one of each kind."""
    monkeypatch.chdir(tmp_path)
    folder_with(tmp_path / "package", "tipserve.json", "config.json")
    folder_with(tmp_path / "x", "config.json", "model.safetensors")
    folder_with(tmp_path / "official", "a_vision.npz", "a_text.npz")
    folder_with(tmp_path / "x+y", "config.json")
    folder_with(tmp_path / "none", "image.png")
    for name in ("x-dpt", "heads", "package-dpt"):
        folder_with(tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"model_type": "tipsv2_dpt"}')
    (tmp_path / "depth.zip").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bundled", PackageSource("bundled")),
        ("package", PackageSource("package")),
        ("x", FolderSource(Path("x"))),
        ("official", FolderSource(Path("official"))),
        ("x+y", FolderSource(Path("x+y"))),  # a folder of that name comes first
        ("google/tipsv2-b14", B14),
        ("google/tipsv2-so400m14@v1.0", HubSource("google/tipsv2-so400m14", "v1.0")),
        ("me/own.model@refs/pr/3", HubSource("me/own.model", "refs/pr/3")),
        ("google/tipsv2-b14-dpt", JoinedSource(B14, HEADS)),
        ("x+./heads", JoinedSource(FolderSource(Path("x")), FolderSource(Path("heads")))),
        (
            "google/tipsv2-b14@v1+heads",
            JoinedSource(HubSource("google/tipsv2-b14", "v1"), FolderSource(Path("heads"))),
        ),
    ],
)
def test_a_name_is_a_folder_a_hub_id_or_both_joined(text: str, expected: object) -> None:
    source = parse_source(text)
    assert source == expected
    if isinstance(source, HubSource | JoinedSource):
        assert parse_source(str(source)) == source


def test_an_existing_folder_takes_precedence_over_the_hub(here: Path) -> None:
    (here / "google").mkdir()
    with pytest.raises(SourceError, match="no folder 'google/tipsv2-b14', although 'google' is"):
        parse_source("google/tipsv2-b14")
    assert parse_source("google/tipsv2-b14@main") == B14
    folder_with(here / "google" / "tipsv2-b14", "config.json")
    assert parse_source("google/tipsv2-b14") == FolderSource(Path("google/tipsv2-b14"))


def test_a_package_is_only_converted_to_add_precisions_or_heads() -> None:
    for text, path in (("package", Path("package")), ("bundled", BUNDLED_FOLDER)):
        with pytest.raises(SourceError, match="is a model package already"):
            parse_checkpoint(text)
        assert parse_checkpoint(text, may_be_package=True) == FolderSource(path)
    joined = parse_checkpoint("package+heads", may_be_package=True)
    assert joined == JoinedSource(FolderSource(Path("package")), FolderSource(Path("heads")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, r"'bundled'.*google/tipsv2-b14")
            for text in (
                *("tipsv2-b14", "./google/tipsv2-b14", "/google/tipsv2-b14", "a/b/c", "a/b@"),
                *("a/../b", "google/tips v2", "-a/b", "a/b--c", "a/b@../c", "a/b\n"),
            )
        ),
        ("none", r"is not a model: .*tipserve\.json.*\.npz"),
        ("depth.zip", "is a file; name the folder"),
        ("heads", r"heads holds dense heads without .*MODEL\+heads"),
        ("package-dpt", r"package-dpt holds dense heads without a checkpoint"),
        ("nowhere+heads", "there is no folder 'nowhere'"),
        ("x+nowhere", "there is no folder 'nowhere'"),
        ("x+depth.zip", "is a file; name the folder"),
        ("google/tipsv2-b14-dpt+heads", r"has dense heads already; remove \+heads"),
        ("x+", "lacks a part; write a model and dense heads as base"),
        ("+heads", "lacks a part"),
        ("bundled+heads", "is a model package already"),
    ],
)
def test_a_wrong_name_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_source(text)
