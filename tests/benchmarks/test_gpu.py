"""The GPU benchmark runs on a CPU with a tiny model, and says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_runs_without_a_gpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["--cpu-tiny", "--seconds=0.05", f"--work={tmp_path}", f"--json={report}"]
    arguments.append("--contestants=torch,onnx,tensorrt")
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], check=True)
    first, *rows = json.loads(report.read_text(encoding="utf-8"))
    assert first["device"].startswith("NO GPU")
    measured = [row for row in rows if "note" not in row]
    encoders = [(row["contestant"], row["batch"]) for row in measured if "batch" in row]
    assert encoders == [("torch", 1), ("torch", 2), ("onnx", 1), ("onnx", 2)]
    served = {row["contestant"] for row in measured if "ratio" in row}
    assert served == {"torch", "onnx"}
    assert all(row["images_per_s"] > 0 for row in measured)
