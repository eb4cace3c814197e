"""Heads that read embeddings: added to a finished package, whose other graphs stay as they are."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.export.added_heads import HEADING, AddedHeads, add_heads
from model.graphs import DenseTask, PatchOutput
from model.manifest import ScoreEntry
from model.package import ModelPackage
from model.parity.measure import ParityError
from model.runtime.load import load_runtime

WIDTH = 32
VALUES: tuple[PatchOutput, ...] = ("values",)
NOUNS: dict[DenseTask, str] = {"depth": "boxes", "normals": "bags"}
SCORE = ScoreEntry(task="depth", split="rooms", row="head", metric="RMSE (m)", value=0.5, count=9)


class Head(nn.Module):
    """Depth or normals of each patch, eight times enlarged."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(num_outputs)
        self.read = nn.Linear(WIDTH, num_outputs)
        self.cls = nn.Linear(WIDTH, num_outputs)
        for weight in (self.read.weight, self.cls.weight):
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        read = self.read(tap_patches[:, 0]) + self.cls(tap_cls[:, 0])[:, None, None]
        wide = nn.functional.interpolate(
            read.permute(0, 3, 1, 2).contiguous(), scale_factor=8.0, mode="bilinear"
        )
        return wide.exp()[:, 0] if wide.shape[1] == 1 else wide


@pytest.fixture(scope="module")
def heads() -> AddedHeads:
    return AddedHeads(
        modules={"depth": Head(1).eval(), "normals": Head(3).eval()},
        scores=[SCORE],
        provenance={task: {"description": f"of {noun}."} for task, noun in NOUNS.items()},
    )


@pytest.fixture(scope="module")
def added(
    tiny_package: ModelPackage, heads: AddedHeads, tmp_path_factory: pytest.TempPathFactory
) -> ModelPackage:
    return add_heads(tiny_package, heads, tmp_path_factory.mktemp("added") / "tiny")


PIXELS = np.random.default_rng(0).random((2, 3, 56, 84), np.float32)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_runtime_computes_what_torch_computes(
    added: ModelPackage, heads: AddedHeads, name: str
) -> None:
    with closing(load_runtime(added, runtime=name, precision="fp32")) as runtime:
        assert runtime.tasks == ("depth", "normals")
        together = runtime.encode_images(PIXELS, ("depth", "normals"), patch_outputs=VALUES)
        assert together.patches_BND.shape[1] == 0
        output = runtime.encode_images(PIXELS)
        cls = torch.from_numpy(output.cls1_BD)[:, None]
        patches = torch.from_numpy(output.patches_BND).unflatten(1, output.grid_hw)[:, None]
        for task, head in heads.modules.items():
            with torch.no_grad():
                wanted = head(cls, patches).numpy()
            scale = np.abs(wanted).max()
            alone = runtime.estimate(task, PIXELS)
            np.testing.assert_allclose(alone, wanted, rtol=0, atol=1e-4 * scale)
            np.testing.assert_allclose(together.maps[task], alone, rtol=0, atol=1e-5 * scale)


def test_a_head_is_replaced_and_the_others_stay(
    added: ModelPackage, heads: AddedHeads, tmp_path: Path
) -> None:
    newer = replace(
        heads,
        modules={"depth": Head(1).eval(), "segmentation": Head(5).eval()},
        labels=["wall", "floor", "door", "lamp", "sky"],
        scores=[SCORE.model_copy(update={"value": 0.4})],
        provenance={task: {"description": "of balls."} for task in ("depth", "segmentation")},
    )
    package = add_heads(added, newer, tmp_path / "newer")
    before, after = added.manifest, package.manifest
    assert [s.value for s in after.scores if s.task == "depth"] == [0.4]
    assert after.outputs == [*before.outputs, "segmentation"]
    assert after.segmentation_labels == newer.labels
    normals = "onnx/normals_model.onnx"
    assert after.files[normals] == before.files[normals]
    assert [e for e in after.parity if e.file == normals] == [
        e for e in before.parity if e.file == normals
    ]
    assert len({(e.file, e.runtime, e.precision) for e in after.parity}) == len(after.parity)
    card = (package.path / "README.md").read_text(encoding="utf-8")
    lines = ["- **depth**: of balls.", "- **normals**: of bags.", "- **segmentation**: of balls."]
    assert "\n".join(lines) in card
    assert card.count(HEADING) == 1
    with closing(load_runtime(package, runtime="onnx")) as runtime:
        assert runtime.estimate("segmentation", PIXELS).shape == (2, 5, 32, 48)
    again = add_heads(package, heads, tmp_path / "again").manifest
    assert again.segmentation_labels == newer.labels


def test_a_package_keeps_heads_of_its_own(
    dense_package: ModelPackage, heads: AddedHeads, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has dense heads of its own"):
        add_heads(dense_package, heads, tmp_path / "out")


class Drifting(Head):
    """Computes another thing when it is traced."""

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        factor = 1.01 if torch.compiler.is_exporting() else 1.0
        return super().forward(tap_cls, tap_patches) * factor


def test_a_graph_that_differs_is_not_written(
    tiny_package: ModelPackage, heads: AddedHeads, tmp_path: Path
) -> None:
    wrong = replace(heads, modules={"depth": Drifting(1).eval()})
    with pytest.raises(ParityError, match="depth_model"):
        add_heads(tiny_package, wrong, tmp_path / "out")
    assert not list(tmp_path.iterdir())
