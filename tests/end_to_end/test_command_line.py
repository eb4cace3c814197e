"""The command `tipserve` gives equal results with a local model and with a server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.package import ModelPackage
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, main

LIMIT_S = 60.0
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tipserve_cli", *arguments]


@pytest.fixture
def tipserve(project_root: Path) -> Run:
    """Run the command and wait until it exits."""

    def run(
        *arguments: str, environment: Mapping[str, str] | None = None, given: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            cwd=project_root,
            env={**os.environ, **(environment or {})},
            input=given,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )

    return run


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """Folder of five photos, one of them broken."""
    path = tmp_path / "photos"
    path.mkdir()
    for index in range(5):
        data = b"nonsense" if index == 3 else photo(index, (90 + index, 60))
        (path / f"{index}.jpg").write_bytes(data)
    return path


def targets(service: Any, package: ModelPackage) -> Sequence[tuple[str, list[str]]]:
    ports = service.ports
    return (
        ("here", [f"--model={package.path}"]),
        ("rest", [f"--url=http://127.0.0.1:{ports['http']}"]),
        ("grpc", [f"--url=grpc://127.0.0.1:{ports['grpc']}", "--model=tiny"]),
    )


def test_embeddings_equal_the_api_for_every_engine(
    tipserve: Run, folder: Path, tmp_path: Path, service: Any, tiny_package: ModelPackage
) -> None:
    for name, target in targets(service, tiny_package):
        file = tmp_path / f"{name}.parquet"
        options = ["--outputs=cls1,patches", "--fit=aspect", "--part-items=2"]
        ended = tipserve("embed", str(folder), "-o", str(file), *options, *target)
        assert ended.returncode == 3, ended.stderr
        assert "1 images were skipped" in ended.stderr
        errors = (tmp_path / f"{name}.errors.jsonl").read_text(encoding="utf-8")
        assert '"invalid_image"' in errors
        assert f"{folder}/3.jpg" in errors
        table = pq.read_table(file)
        assert table["key"].to_pylist() == [f"{folder}/{i}.jpg" for i in (0, 1, 2, 4)]
        assert table["width"].to_pylist() == [90, 91, 92, 94]
        assert table["height"].to_pylist() == [60] * 4
        for index, path in enumerate(table["key"].to_pylist()):
            image = Path(path).read_bytes()
            fields = {"images": [image], "outputs": ["cls1", "patches"], "fit": "aspect"}
            api = service.over_rest("embed_images", fields)
            np.testing.assert_allclose(table["cls1"][index].as_py(), api["0.cls1"], atol=2e-6)
            grid = table["grid_height"][index].as_py(), table["grid_width"][index].as_py()
            patches = np.reshape(table["patches"][index].as_py(), (*grid, -1))
            np.testing.assert_allclose(patches, api["0.patches"], atol=2e-6)


def test_classes_features_and_searches_equal_the_api_for_every_engine(
    folder: Path,
    tmp_path: Path,
    service: Any,
    tiny_package: ModelPackage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = folder / "0.jpg"
    data = image.read_bytes()
    fields = {"images": [data], "outputs": ["patches", "cls1"], "fit": "aspect"}
    patches_hwD = service.over_rest("embed_images", fields)["0.patches"]
    arrays = service.over_rest("embed_texts", {"texts": ["a cat", "a dog"]})
    texts_TD = np.stack([arrays["0.embedding"], arrays["1.embedding"]])
    outputs: dict[str, list[Any]] = {"classes": [], "found": [], "drawn": [], "rows": []}

    # In this process, which starts faster than a new one for each command.
    def run(*arguments: str) -> str:
        status = main(arguments)
        printed = capsys.readouterr()
        assert status in {DONE, DONE_WITH_SKIPPED_IMAGES}, printed.err
        return printed.out

    for name, target in targets(service, tiny_package):
        files = {end: tmp_path / f"{name}.{end}" for end in ("npy", "png", "parquet", "csv")}
        outputs["classes"].append(run("classify", str(image), "--classes=cat,dog", *target))
        run("classify", str(folder), "--classes=cat,dog", "-o", str(files["csv"]), *target)
        outputs["rows"].append(files["csv"].read_text(encoding="utf-8"))
        run("features", str(image), "-o", str(files["npy"]), *target)
        np.testing.assert_allclose(np.load(files["npy"]), patches_hwD, atol=2e-6)
        run("features", str(image), "-o", str(files["png"]), *target)
        outputs["drawn"].append(files["png"].read_bytes())
        rows = json.loads(run("texts", "a cat", "a dog", *target))
        np.testing.assert_allclose([row["embedding"] for row in rows], texts_TD, atol=2e-6)
        run("embed", str(folder), "-o", str(files["parquet"]), *target)
        found = run("search", str(files["parquet"]), "--image", str(image), *target)
        assert found.startswith(f"1.0000  {image}\n")
        outputs["found"].append(found + run("search", str(files["parquet"]), "a cat", *target))
    drawn = outputs.pop("drawn")
    assert drawn == [drawn[0]] * 3
    for texts in outputs.values():
        for text in texts[1:]:
            assert_same_but_for_rounding(text, texts[0])


def assert_same_but_for_rounding(text: str, other: str) -> None:
    """Compare texts whose numbers may differ in the last digits, as batches may."""
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("#", text) == number.sub("#", other)
    found, expected = (np.array(number.findall(one), np.float64) for one in (text, other))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_key_is_required_and_sent(
    tipserve: Run, run_service: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("a-key-of-the-tests\n", encoding="utf-8")
    with run_service(f"--api-keys-file={file}") as guarded:
        for scheme, port in (("http", "http"), ("grpc", "grpc")):
            url = f"--url={scheme}://127.0.0.1:{guarded.ports[port]}"
            assert tipserve("models", url, f"--api-key-file={file}").returncode == 0
            variable = {"TIPSERVE_API_KEY": "another-key-of-the-tests"}
            ended = tipserve("models", url, environment=variable)
            assert ended.returncode == 1
            assert "key" in ended.stderr
            assert "another-key" not in ended.stderr
