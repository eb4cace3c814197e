"""An archive of NumPy has a row for each image that was embedded."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tipserve_cli.conftest import WIDTH, Fake
from tipserve_cli.bulk.job import errors_file
from tipserve_cli.program import DONE, DONE_WITH_SKIPPED_IMAGES, FAILED, main


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_are_joined_in_order_and_skipped_images_listed(
    image: Path, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(image.read_bytes())
    image.unlink()
    for name in ("c.png", "e.png"):
        (tmp_path / name).write_bytes(b"nonsense")
    output = tmp_path / "out" / "e.npz"
    output.parent.mkdir()
    command = ["embed", str(tmp_path), "-o", str(output), "--outputs=cls1,cls2", f"--dtype={dtype}"]
    fake.most_images = 2
    assert main([*command, "--part-items=1"]) == FAILED
    assert not output.exists()
    fake.most_images = 1000
    # A part of its own for each image; the last one has no image.
    for sentence in (f"{output}: 3 rows", f"{output} is finished"):
        assert main([*command, "--part-items=1"]) == DONE_WITH_SKIPPED_IMAGES
        assert sentence in capsys.readouterr().out
    with np.load(output) as stored:
        found = dict(stored)
    record = json.loads(str(found.pop("tipserve")))
    assert record["model"]["embed_dim"] == WIDTH
    assert found["key"].tolist() == [str(tmp_path / f"{name}.png") for name in "abd"]
    assert found["source"].tolist() == found["key"].tolist()
    assert found["height"].tolist() == [40] * 3
    assert found["width"].tolist() == [60] * 3
    for index, name in enumerate(("cls1", "cls2")):
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], [np.eye(WIDTH)[index]] * 3)
    assert set(found) == {"key", "source", "height", "width", "cls1", "cls2"}
    assert len(errors_file(output).read_text().splitlines()) == 2
    assert sorted(file.name for file in output.parent.iterdir()) == ["e.npz", "e.npz.errors.jsonl"]
    assert main([*command, "--part-items=2"]) == FAILED
    assert "exists; choose another output" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--allow-bad-items"]) == DONE


def test_a_file_of_others_is_kept(
    image: Path, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "e.npz"
    output.write_bytes(b"PK of others")
    assert main(["embed", str(image), "-o", str(output)]) == FAILED
    assert "exists; choose another output" in capsys.readouterr().err
    assert output.read_bytes() == b"PK of others"
    assert not fake.requests
