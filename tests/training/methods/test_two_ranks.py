"""Two real ranks over gloo take the step that one rank takes on the global batch.

Contrast, names, centres, Sinkhorn and masks all reach over the ranks; captions, names and single
drawings are spread over them unevenly.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PROGRAM = Path(__file__).with_name("two_ranks.py")
TIMEOUT_S = 200
RELATIVE = 1e-5
CASES = [
    *(f"{case} uneven" for case in ("centering", "sinkhorn", "ibot", "full", "locked")),
    *(f"{case} uneven" for case in ("distill", "features")),
    "centering one",
    "centering none",
]

Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> tuple[Seen, Seen, Seen]:
    """What one rank alone saw, and both of two."""
    folder = tmp_path_factory.mktemp("ranks")
    places = [(0, 1), (0, 2), (1, 2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(num_ranks), str(folder)],
            cwd=project_root,
            env={
                "PYTHONPATH": str(project_root),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "PATH": os.environ["PATH"],
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, num_ranks in places
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    alone, first, second = (
        torch.load(folder / f"{num_ranks}-{rank}.pt", weights_only=True)
        for rank, num_ranks in places
    )
    return alone, first, second


def assert_close(actual: Tensor, expected: Tensor, name: str, *, floor: float = 1e-3) -> None:
    """Equal up to 1e-5 of the largest value, or of a floor where all are smaller."""
    scale = max(float(expected.abs().max()), floor)
    error = float((actual - expected).abs().max()) / scale
    assert error < RELATIVE, (name, error)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_global_batch(runs: tuple[Seen, Seen, Seen], case: str) -> None:
    alone, *both = (run[case] for run in runs)
    has_captions = not case.endswith("none")
    assert ("cls1" in alone["metrics"]) is has_captions
    assert "names" in alone["metrics"]
    for rank in both:
        assert rank["metrics"].keys() == alone["metrics"].keys()
        assert_close(rank["loss"], alone["loss"], "loss")
        for name, value in alone["metrics"].items():
            assert_close(rank["metrics"][name], value, name)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_global_batch(runs: tuple[Seen, Seen, Seen], case: str) -> None:
    alone, *both = (run[case]["gradients"] for run in runs)
    trains_text = any(name.startswith("model.text_model") for name in alone)
    assert trains_text is not case.startswith("locked")
    for rank in both:
        assert rank.keys() == alone.keys()
        # Some gradients are zero but for rounding, such as those of the keys' biases, and how much
        # rounding leaves grows with the others.
        largest = max(float(gradient.abs().max()) for gradient in alone.values())
        for name, gradient in alone.items():
            assert_close(rank[name], gradient, name, floor=max(1e-3, 1e-2 * largest))


@pytest.mark.parametrize("case", ["centering uneven", "full uneven"])
def test_centres_are_those_of_the_global_batch(runs: tuple[Seen, Seen, Seen], case: str) -> None:
    alone, *both = (run[case]["buffers"] for run in runs)
    assert set(alone) == {"centering.centre_K", "global_centering.centre_K"}
    for name, centre_K in alone.items():
        assert centre_K.any()
        for rank in both:
            assert_close(rank[name], centre_K, name)


def test_every_term_of_the_recipe_was_compared(runs: tuple[Seen, Seen, Seen]) -> None:
    shared = {"cls1", "cls2", "names", "image_backbone", "titles", "dino"}
    by_visibility = {"patch_visible", "patch_masked"}
    seen = {
        case.split()[0]: set(run["metrics"]) for case, run in runs[0].items() if "uneven" in case
    }
    assert seen["centering"] == shared | by_visibility | {"ibot"}
    assert seen["distill"] == {"cls1", "cls2", "names", "patch", "dino"}
