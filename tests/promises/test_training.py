"""A training run that is stopped continues to the numbers of one that is not."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.processes.server import LIMIT_S, ROOT, run

STEPS = 40
STOPPED = 143
# A model of width 32, and one checkpoint where it is stopped.
SMALL = {
    "precision": "float32",
    "log_every": 1,
    "model.variant": "custom",
    "model.dim": 32,
    "model.vision_layers": 2,
    "model.text_layers": 1,
    "model.heads": 2,
    "model.vocab_size": 300,
    "method.head.hidden": 32,
    "method.head.bottleneck": 16,
    "method.head.num_prototypes": 24,
    "data.crops.global_size": 56,
    "data.crops.local_size": 14,
    "data.num_workers": 0,
}


@pytest.mark.timeout(600)
def test_a_stopped_run_continues_to_the_same_numbers(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(images / f"{index}.png")
        (images / f"{index}.txt").write_text(f"a wall, number {index}", encoding="utf-8")
    run(*command(images, tmp_path, "whole"), timeout_s=240)

    parts = command(images, tmp_path, "parts")
    with subprocess.Popen(parts, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 240
        while len(rows(tmp_path, "parts")) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == STOPPED
    assert 2 <= len(rows(tmp_path, "parts")) < STEPS
    run(*parts, timeout_s=240)

    whole, continued = rows(tmp_path, "whole"), rows(tmp_path, "parts")
    assert [row["step"] for row in continued] == list(range(1, STEPS + 1))
    losses = [[row["loss"] for row in log] for log in (whole, continued)]
    assert losses[0] == losses[1]
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "parts")]
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


def command(images: Path, runs: Path, name: str) -> Sequence[str]:
    """Train by the command."""
    given = {"images": images, "steps": STEPS, "batch": 4, "runs": runs, "name": name}
    options = [f"--{option}={value}" for option, value in given.items()]
    options += [f"--set={key}={value}" for key, value in SMALL.items()]
    return [sys.executable, "-m", "training", "pretrain", *options]


def rows(runs: Path, name: str) -> list[dict[str, Any]]:
    """The whole lines of the log so far."""
    log = runs / name / "log.jsonl"
    if not log.exists():
        return []
    return [
        json.loads(line) for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
