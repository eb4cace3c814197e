"""The GPU benchmark runs end to end on a CPU with a tiny model."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.on_gpu.arithmetic import flops_per_image
from model.variants import VARIANTS


def test_it_runs_without_a_gpu_and_reports_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "report.json"
    arguments = ["--cpu-tiny", "--seconds=0.05", f"--work={tmp_path}", f"--json={document}"]
    assert gpu.main([*arguments, "--contestants=torch-eager,onnx,tensorrt"]) == 0
    # In the conditions and in each of three tables.
    assert capsys.readouterr().out.count("NO GPU: a tiny model on the CPU") == 4
    report = json.loads(document.read_text(encoding="utf-8"))
    assert report["conditions"]["place"].startswith("NO GPU")
    assert [row["side"] for row in report["gemm"]] == [128, 256]
    measured = [row for row in report["encoders"] if "note" not in row]
    assert [(row["contestant"], row["batch"]) for row in measured] == [
        ("torch-eager", 1),
        ("torch-eager", 2),
        ("onnx", 1),
        ("onnx", 2),
    ]
    assert all(row["images_per_s"] > 0 and row["gflop_per_image"] > 0 for row in measured)
    assert all(row["mfu"] > 0 for row in measured if row["contestant"] == "torch-eager")
    served = {row["contestant"]: row for row in report["serving"]}
    assert served["onnx"]["efficiency"] > 0


@pytest.mark.parametrize(("side", "gflop"), [(448, 214.0), (224, 46.5)])
def test_operations_of_b14_are_those_of_the_formulas(side: int, gflop: float) -> None:
    # Per block 24 N D^2 for products and 4 N^2 D for attention, N tokens, D = 768; plus the patch
    # projection. The value path adds a part of a block to the twelve.
    plain = gflop * 1e9
    counted = flops_per_image(VARIANTS["b14"].build(native_size=448), side)
    assert 1.0 < counted / plain < 1.09
