"""Two real ranks over gloo take the step that one rank takes on the global batch.

Contrast, names, centres and masks all need both ranks. Captions, names and unnamed
drawings are spread unevenly over the ranks.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.methods.two_ranks import CAPTIONED, take_steps
from tests.training.ranks import two_ranks

RELATIVE = 1e-5
Seen = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seen, Seen, Seen]:
    """Results of one rank alone, and of both ranks together."""
    folder = tmp_path_factory.mktemp("ranks")
    with two_ranks("tests.training.methods.two_ranks", folder):
        alone = take_steps(0, 1)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return alone, first, second


def assert_close(actual: Tensor, expected: Tensor, name: str, *, floor: float = 1e-3) -> None:
    """Equal up to 1e-5 of the largest value, or of a floor where all are smaller."""
    scale = max(float(expected.abs().max()), floor)
    error = float((actual - expected).abs().max()) / scale
    assert error < RELATIVE, (name, error)


@pytest.mark.parametrize("case", CAPTIONED)
def test_losses_and_gradients_are_those_of_the_global_batch(
    runs: tuple[Seen, Seen, Seen], case: str
) -> None:
    alone, *both = (run[case] for run in runs)
    expected = alone["gradients"]
    assert ("cls1" in alone["metrics"]) is (case != "none")
    assert "names" in alone["metrics"]
    assert any(name.startswith("model.text_model") for name in expected)
    # Some gradients are zero but for rounding, such as those of the keys' biases; the rounding
    # grows with the other gradients.
    floor = max(1e-3, 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values()))
    for rank in both:
        assert_close(rank["loss"], alone["loss"], "loss")
        assert rank["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            assert_close(rank["metrics"][name], value, name)
        assert rank["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(rank["gradients"][name], gradient, name, floor=floor)


def test_centres_and_every_term_are_compared(runs: tuple[Seen, Seen, Seen]) -> None:
    alone, *both = (run["uneven"]["buffers"] for run in runs)
    assert set(alone) == {"centering.centre_K", "global_centering.centre_K"}
    for name, centre_K in alone.items():
        assert centre_K.any()
        for rank in both:
            assert_close(rank[name], centre_K, name)
    shared = {"cls1", "cls2", "names", "image_backbone", "titles", "dino"}
    observed = {"target_entropy", "prototypes_used", "patch_visible", "patch_masked"}
    assert set(runs[0]["uneven"]["metrics"]) == shared | observed | {"ibot"}
