"""Classes of an image as a table, and of many as CSV or JSON lines."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, FAILED, main


@pytest.mark.usefixtures("fake")
def test_an_image_prints_a_table(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("dog\nsea gull\n")
    for classes in (["--classes", "dog, sea gull"], ["--classes-file", str(names)]):
        assert main(["classify", str(image), *classes]) == DONE
        assert capsys.readouterr().out.splitlines() == [
            " 75.00 %   0.375  sea gull",
            " 25.00 %   0.125  dog",
        ]
    assert main(["classify", str(image), "--classes=dog,cat", "--top=1"]) == DONE
    assert capsys.readouterr().out.splitlines() == [" 75.00 %   0.375  cat"]


@pytest.mark.usefixtures("fake")
def test_a_folder_becomes_a_table(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "d.png", "more/e.png"):
        shutil.copy(image, folder / name)
    (folder / "c.jpg").write_bytes(b"nonsense")
    file = tmp_path / "found.csv"
    command = ["classify", str(folder), "--classes=dog,cat", "-o", str(file)]
    assert main(command) == DONE_WITH_SKIPPED_IMAGES
    printed = capsys.readouterr()
    assert "4 images" in printed.out
    assert "1 images were skipped" in printed.err
    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["file"], row["rank"], row["class"]) for row in rows[:3]] == [
        ("a.png", "1", "cat"),
        ("a.png", "2", "dog"),
        ("b.png", "1", "cat"),
    ]
    assert (rows[0]["probability"], rows[0]["cosine"]) == ("0.75", "0.375")
    assert rows[-1]["file"] == "more/e.png"
    (skipped,) = map(json.loads, (tmp_path / "found.errors.jsonl").read_text().splitlines())
    assert (skipped["file_name"], skipped["code"]) == ("c.jpg", "invalid_image")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "found.csv", "found.errors.jsonl", "image.png", "photos"
    ]  # fmt: skip
    assert main(command) == FAILED
    assert f"{file} exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == DONE_WITH_SKIPPED_IMAGES


@pytest.mark.usefixtures("fake")
def test_json_lines_have_an_image_each(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    command = ["classify", str(image), "--classes=a,b,c", "--top=2", "-o", str(file)]
    assert main(command) == DONE
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line == {
        "file": str(image),
        "classes": [
            {"name": "c", "probability": 0.75, "cosine": 0.375},
            {"name": "b", "probability": 0.25, "cosine": 0.125},
        ],
    }


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Give the classes by --classes or by --classes-file."),
        (["--classes=a", "--classes-file=names.txt"], "by --classes or by --classes-file."),
        (["--classes-file=names.txt"], "names.txt cannot be read: No such file"),
        (["--classes-file=blank.txt"], "blank.txt: line 2 is blank; remove it."),
        (["--classes-file=empty.txt"], "empty.txt has no lines."),
        (["--classes-file=image.png"], "image.png is not UTF-8 text."),
        (["image.png", "--classes=a"], "Several images need an --output that ends in .csv or"),
        (["--classes=a", "-o=x.txt"], "--output must end in .csv or .jsonl, not x.txt."),
        (["--classes=a", "-o=no/x.csv"], "no is not a folder"),
    ],
)
def test_invalid_arguments_are_named(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("a\n\nb\n")
    (tmp_path / "empty.txt").touch()
    assert main(["classify", str(image), *arguments]) == FAILED
    assert sentence in capsys.readouterr().err
