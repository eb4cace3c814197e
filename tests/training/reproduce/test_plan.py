"""The plan: order, shared starts, teachers before students, and the difference of each variant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.reproduce.plan import (
    AVERAGED,
    EFFECTS,
    LONG_STUDENT,
    ONE_CAPTION,
    RECIPE,
    STUDENT,
    PlannedRun,
    ReproductionPlan,
)


def by_variant(plan: ReproductionPlan, seed: int = 0) -> dict[str, PlannedRun]:
    return {run.variant: run for run in plan.all_runs([seed])}


def test_every_run_follows_those_it_needs(plan: ReproductionPlan) -> None:
    made: set[Path] = set()
    for run in plan.all_runs([0, 1, 2]):
        for needed in (run.config.teacher, run.config.start, run.text_from):
            assert needed is None or needed in made, run.variant
        made.add(run.config.folder)
    assert len(made) == len(plan.all_runs([0, 1, 2]))


def test_every_compared_variant_is_made_and_measured(plan: ReproductionPlan) -> None:
    runs = plan.all_runs([0])
    measured = {run.variant for run in runs if run.is_measured}
    assert [run.variant for run in runs if run.has_average] == ["full-ema"]
    compared = {name for effect in EFFECTS for name in effect.variants}
    assert compared == measured | {AVERAGED}


@pytest.mark.parametrize(
    ("base", "variant", "change"),
    [
        (RECIPE, "ibot", {"supervised": "masked"}),
        (RECIPE, "contrastive", {"ibot_weight": 0.0}),
        (RECIPE, "full-ema", {"ema": "full"}),
        (RECIPE, "no-ema", {"ema": "none"}),
        (STUDENT, "student-mask-75", {"mask_ratio": 0.75}),
        (STUDENT, "student-masked-only", {"mask_ratio": 0.75, "supervised": "masked"}),
        (STUDENT, "student-alone", {"patch_weight": 0.0}),
    ],
)
def test_variants_differ_only_in_the_method(
    plan: ReproductionPlan, base: str, variant: str, change: dict[str, Any]
) -> None:
    runs = by_variant(plan)
    config = runs[base].config
    method = replace(config.method, **change)
    assert runs[variant].config == replace(config, name=variant, method=method)


def test_students_differ_in_teacher_or_length(plan: ReproductionPlan) -> None:
    runs = by_variant(plan)
    student = runs[STUDENT].config
    assert student.teacher == runs[RECIPE].config.folder
    of_ibot = runs["student-of-ibot"].config
    assert of_ibot == replace(student, name="student-of-ibot", teacher=runs["ibot"].config.folder)
    teacher_steps = runs["start"].config.num_steps + runs[RECIPE].config.num_steps
    long = runs[LONG_STUDENT].config
    assert long == replace(student, name=LONG_STUDENT, num_steps=teacher_steps)


def test_the_one_caption_run_has_a_start_of_its_own(plan: ReproductionPlan) -> None:
    runs = by_variant(plan)
    one, recipe = runs["one-caption"].config, runs[RECIPE].config
    assert one.start != recipe.start
    assert one.method == recipe.method
    assert one.data == replace(recipe.data, captions=ONE_CAPTION)
    own, shared = runs["one-caption-start"].config, runs["start"].config
    assert own == replace(shared, name=own.name, data=replace(shared.data, captions=ONE_CAPTION))


def test_stages_and_seeds_share_neither_scenes_nor_weights(plan: ReproductionPlan) -> None:
    runs = plan.all_runs([0, 1, 2])
    streams = {(run.seed, run.config.data.seed) for run in runs}
    assert len({data_seed for _, data_seed in streams}) == len(streams) == 9
    assert len({run.config.seed for run in runs}) == 6  # a teacher's and a student's each
