"""New vectors for the names of regions: what changes in a package, and what stays."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.manifest import RECORDED_FILE
from model.package import ModelPackage, open_package
from model.parity.recorded import check_runtime, read_recorded
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize
from model.text import TextTokenizer
from tests.training.photographs.miniature import cells
from training.photographs import regions
from training.photographs.encoder import SplitMoments, photographed_names
from training.photographs.region_vectors import read_encoder, with_regions, write_texts

ON_CPU = RuntimeChoice(runtime="onnx", precision="fp32", device="cpu", reason="")
TEXTS = ("sky", "a new thing", "grand piano", "espresso")


def embeddings(package: ModelPackage) -> NDArray[np.float32]:
    """Unit vectors of `TEXTS`; the package's record of its outputs holds as well."""
    recorded, tokenizer = read_recorded(package), TextTokenizer.from_package(package)
    assert recorded is not None
    with closing(load_runtime(package, runtime="onnx", precision="fp32")) as runtime:
        checked = check_runtime(recorded, package, ON_CPU, runtime)
        assert [entry.failures for entry in checked] == [()] * len(checked)
        tokens = tokenizer.encode(list(TEXTS))
        return l2_normalize(runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_names_of_regions_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(open_package("bundled").path, tmp_path / "package")
    before = open_package(tmp_path / "package")
    first = embeddings(before)
    boxes = {"budgie:one.jpg": [("sky", 0.0, 0.0, 1.0, 0.5), ("a new thing", 0.0, 0.5, 1.0, 1.0)]}
    monkeypatch.setattr(regions, "read_boxes", lambda: boxes)
    shown, names = cells(0, 2), photographed_names()
    moments = SplitMoments.of([(shown, names)], names)
    write_texts(with_regions(read_encoder(before), moments, shown), before)

    after = open_package(tmp_path / "package")
    cosines = (first * embeddings(after)).sum(axis=1)
    assert (cosines[:2] < 0.9).all(), cosines
    assert (cosines[2:] > 0.999).all(), cosines
    changed = {
        name for name, entry in after.manifest.files.items() if entry != before.manifest.files[name]
    }
    assert changed == {"config.json", "onnx/text_model.onnx", RECORDED_FILE}
