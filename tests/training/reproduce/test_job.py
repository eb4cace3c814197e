"""The whole job at toy size: every variant, every table, and nothing twice."""

from pathlib import Path

import pytest

from training.reproduce import job as job_module
from training.reproduce.averages import load_averages
from training.reproduce.job import reproduce
from training.reproduce.plan import EFFECTS, Plan


@pytest.mark.slow
def test_the_smoke_makes_every_variant_and_fills_the_page(
    toy_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "RESULTS.md"
    reproduce(toy_plan, [0], page)
    text = page.read_text(encoding="utf-8")
    assert "complete seeds: 1 of 1" in text
    assert "not run yet" not in text.lower()
    assert "None yet." not in text
    for effect in EFFECTS:
        assert f"## ({effect.letter}) {effect.title}" in text
        for variant in effect.variants:
            assert text.count(f"| {variant} |") >= 4, variant
    for part in ("visible", "masked"):
        for run in ("ibot", "ibot++", "student-masked-only"):
            assert f"| {run} | {part} |" in text
    assert {cost.ema for cost in load_averages(toy_plan.runs)} == {"head", "full", "none"}

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("what is measured must not be measured again")

    monkeypatch.setattr(job_module, "measure_averages", nothing)
    page.unlink()
    reproduce(toy_plan, [0], page)
    assert page.read_text(encoding="utf-8") == text


def test_a_page_of_nothing_says_so(toy_plan: Plan, tmp_path: Path) -> None:
    page = tmp_path / "sub/RESULTS.md"
    reproduce(toy_plan, [0, 1], page, is_report_only=True)
    text = page.read_text(encoding="utf-8")
    assert "complete seeds: 0 of 2" in text
    assert text.count("not run yet") > len(EFFECTS)
    assert not toy_plan.runs.exists()


def test_no_seed_is_refused(toy_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        reproduce(toy_plan, [], tmp_path / "RESULTS.md")
