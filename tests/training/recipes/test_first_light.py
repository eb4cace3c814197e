"""The recipes are whole configurations that fit together."""

from collections.abc import Callable

import pytest

from training.commands.train import RECIPES
from training.config import DataConfig, TrainingConfig
from training.data.folder import TRAIN_STYLES
from training.data.loader import BatchPlan
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.recipes import first_light
from training.recipes.scale import SCALE_RECIPES

SMALL = {name: recipe for name, recipe in RECIPES.items() if name not in SCALE_RECIPES}


@pytest.mark.parametrize("recipe", SMALL.values(), ids=SMALL.keys())
def test_a_recipe_is_a_whole_configuration(recipe: Callable[[], TrainingConfig]) -> None:
    config = recipe()
    assert recipe() == config
    assert recipe.__doc__
    assert isinstance(config.data, DataConfig)
    assert set(config.data.styles) <= set(TRAIN_STYLES)
    plan = BatchPlan(
        stages=config.data.stages, batch_size=config.batch_size, num_steps=config.num_steps
    )
    assert plan.stage_at(config.num_steps - 1) is config.data.stages[-1]
    for stage in config.data.stages:
        assert stage.scenes.size % 14 == 0


def test_the_student_learns_from_the_teacher() -> None:
    teacher, student = first_light.teacher(), first_light.first_student()
    assert isinstance(teacher.method, PretrainConfig)
    assert isinstance(student.method, DistillConfig)
    assert student.teacher == teacher.folder
    assert student.method.head == teacher.method.head
    assert student.method.patch_from < student.method.patch_until
    assert student.model == teacher.model


def test_the_teacher_is_trained_as_the_paper_says() -> None:
    method = first_light.teacher().method
    assert isinstance(method, PretrainConfig)
    assert (method.ibot_weight, method.mask_ratio, method.supervised) == (2.0, 0.75, "all")
