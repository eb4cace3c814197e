"""The bundled student's recipe goes on from the first student's."""

from training.config import DataConfig
from training.methods.distill import DistillConfig
from training.recipes import bundled, first_light


def test_the_student_learns_from_the_first_one() -> None:
    first, student = first_light.first_student(), bundled.student()
    assert isinstance(student.method, DistillConfig)
    assert student.teacher == first.folder
    # The text tower is copied, and the released form has no prototype head.
    assert student.model == first.model
    assert (student.method.text_start, student.method.patch_loss) == ("teacher", "features")
    assert (student.method.mask_ratio, student.method.supervised) == (0.0, "all")


def test_the_backbone_looks_at_scenes_while_they_are_close_ups() -> None:
    student = bundled.student()
    assert isinstance(student.data, DataConfig)
    close_ups, *later = student.data.stages
    assert student.method.image_backbone.scenes_until == close_ups.until
    assert close_ups.scenes.count_weights == (1.0,)
    assert all(len(stage.scenes.count_weights) > 1 for stage in later)
