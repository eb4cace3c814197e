"""`python -m training cost`: counted operations, and errors in one line."""

import pytest

from training.__main__ import main
from training.commands.cost import estimate
from training.recipes.scale import SCALE_RECIPES


def test_a_student_costs_its_own_passes_and_one_of_its_teacher(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cost", "--recipe", "student-s14", "--gpus", "8"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| student-s14 | 21.9 + 33.6 + 13.9 |")
    cost = estimate(SCALE_RECIPES["student-s14"](), num_devices=8)
    teacher_pass = 2 * 1.135e9 * 258  # two operations a parameter and token, without attention
    own_passes = 3 * 2 * (21.7e6 * (258 + 6 * 51) + 22e6 * 2 * 64)
    heads = 6 * 2 * 13.5e6 * (256 + 6)
    assert teacher_pass + own_passes + heads < cost.flops_per_image
    assert cost.flops_per_image < 1.1 * (teacher_pass + own_passes + heads)
    assert cost.images_per_step == 8192
    teacher_bytes = 2 * 1.136e9
    assert cost.state_bytes == pytest.approx(16 * 69.5e6 / 8 + teacher_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [("gpus", "0", "greater than 0"), ("mfu", "40", "less than or equal to 1"), ("gpus", "x", "")],
)
def test_a_wrong_number_is_reported_in_one_line(
    option: str, value: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", f"--{option}", value]) == 2
    assert f"error: {option}: Input should be {limit}" in capsys.readouterr().err
