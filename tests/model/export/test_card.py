"""The card is the author's text, then every measured number."""

from model.export.package_writer import render_card
from model.manifest import ScoreEntry
from model.package import ModelPackage


def test_the_text_comes_first_and_every_number_follows(tiny_package: ModelPackage) -> None:
    card = render_card("\n# Title\n\nText.\n\n", tiny_package.manifest)
    assert card.startswith("# Title\n\nText.\n\n## Scores\n")
    assert "### zero-shot segmentation, test" in card
    assert "| student | mIoU | 4.25 (2.75 to 5.75) | 500 |" in card
    assert "| random | mIoU | 2.00 (0.50 to 3.50) | 500 |" in card
    assert "| `onnx/vision_model.onnx` |" in card
    assert card.endswith("|\n")


def test_without_numbers_only_the_text_is_left(tiny_package: ModelPackage) -> None:
    bare = tiny_package.manifest.model_copy(update={"scores": [], "parity": []})
    assert render_card("# Title", bare) == "# Title\n"


def test_scores_of_one_task_stand_together_whatever_their_order(
    tiny_package: ModelPackage,
) -> None:
    scores = [
        ScoreEntry(task=task, split="test", row=row, metric="R@1", value=1, count=9)
        for row in ("student", "teacher")
        for task in ("retrieval", "classification")
    ]
    card = render_card("# Title", tiny_package.manifest.model_copy(update={"scores": scores}))
    assert card.count("### retrieval, test") == 1
    assert card.index("### retrieval") < card.index("### classification")
    assert "| teacher | R@1 | 1.00 | 9 |" in card
