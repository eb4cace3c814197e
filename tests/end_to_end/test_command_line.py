"""The command `tipserve` gives equal results with a local model and with a server."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.package import ModelPackage
from tests.end_to_end.client import over_rest
from tests.processes.server import Server
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, main

# Runs a command in this process, which starts faster than a new one; returns what it prints.
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path, status: int = DONE) -> str:
        ended = main(tuple(map(str, arguments)))
        printed = capsys.readouterr()
        assert ended == status, printed.err
        return printed.out if status == DONE else printed.err

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


@pytest.fixture
def targets(service: Server, tiny_package: ModelPackage) -> Mapping[str, list[str]]:
    return {
        "here": [f"--model={tiny_package.path}"],
        "rest": [f"--url={service.rest}"],
        "grpc": [f"--url=grpc://{service.grpc}", "--model=tiny"],
    }


def test_embeddings_equal_the_api_for_every_engine(
    run: Run, folder: Path, tmp_path: Path, service: Server, targets: Mapping[str, list[str]]
) -> None:
    images = [str(folder / f"{index}.jpg") for index in (0, 1, 2, 4)]
    fields = {"images": images, "outputs": ["cls1", "patches"], "fit": "aspect"}
    api = over_rest(service, "embed_images", fields)
    for name, target in targets.items():
        file = tmp_path / f"{name}.parquet"
        options = ["--outputs=cls1,patches", "--fit=aspect", "--part-items=2", *target]
        said = run("embed", folder, "-o", file, *options, status=DONE_WITH_SKIPPED_IMAGES)
        assert "1 images were skipped" in said
        errors = (tmp_path / f"{name}.errors.jsonl").read_text(encoding="utf-8")
        assert '"invalid_image"' in errors
        assert f"{folder}/3.jpg" in errors
        rows = pq.read_table(file).to_pylist()
        assert [row["key"] for row in rows] == images
        assert [row["width"] for row in rows] == [90, 91, 92, 94]
        for index, row in enumerate(rows):
            np.testing.assert_allclose(row["cls1"], api[f"{index}.cls1"], atol=2e-6)
            patches = np.reshape(row["patches"], (row["grid_height"], row["grid_width"], -1))
            np.testing.assert_allclose(patches, api[f"{index}.patches"], atol=2e-6)


def test_classes_features_and_searches_equal_the_api_for_every_engine(
    run: Run, folder: Path, tmp_path: Path, service: Server, targets: Mapping[str, list[str]]
) -> None:
    image = folder / "0.jpg"
    fields = {"images": [str(image)], "outputs": ["patches"], "fit": "aspect"}
    patches_hwD = over_rest(service, "embed_images", fields)["0.patches"]
    texts = over_rest(service, "embed_texts", {"texts": ["a cat", "a dog"]}).values()
    printed, drawn = [], set()
    for name, target in targets.items():
        files = {end: tmp_path / f"{name}.{end}" for end in ("npy", "png", "parquet", "csv")}
        skips: dict[str, Any] = {"status": DONE_WITH_SKIPPED_IMAGES}
        classes = run("classify", image, "--classes=cat,dog", *target)
        run("classify", folder, "--classes=cat,dog", "-o", files["csv"], *target, **skips)
        run("features", image, "-o", files["npy"], *target)
        np.testing.assert_allclose(np.load(files["npy"]), patches_hwD, atol=2e-6)
        run("features", image, "-o", files["png"], *target)
        drawn.add(files["png"].read_bytes())
        rows = json.loads(run("texts", "a cat", "a dog", *target))
        np.testing.assert_allclose([row["embedding"] for row in rows], [*texts], atol=2e-6)
        run("embed", folder, "-o", files["parquet"], *target, **skips)
        found = run("search", files["parquet"], "--image", image, *target)
        assert found.startswith(f"1.0000  {image}\n")
        found += run("search", files["parquet"], "a cat", *target) + run("models", *target)
        printed.append(classes + files["csv"].read_text(encoding="utf-8") + found)
    assert len(drawn) == 1
    # Numbers may differ in the last digits, as batches may.
    number = re.compile(r"-?\d+\.\d+")
    assert len({number.sub("#", text) for text in printed}) == 1
    values = [np.array(number.findall(text), np.float64) for text in printed]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], atol=2e-4)
