"""The card is the author's text, then every measured number."""

from model.card import author_text, render_card
from model.manifest import ScoreEntry
from model.package import ModelPackage


def test_a_card_has_the_text_then_scores_by_task_then_parity(tiny_package: ModelPackage) -> None:
    scores = [
        ScoreEntry(task=task, split="test", row=row, metric="R@1", value=1, count=9)
        for row in ("student", "teacher")
        for task in ("retrieval", "classification")
    ]
    manifest = tiny_package.manifest.model_copy(update={"scores": scores})
    card = render_card("\n# Title\n\nText.\n\n", manifest)
    parts = ["# Title", "## Scores", "### retrieval", "### classification", "vision_model.onnx"]
    places = [card.index(part) for part in parts]
    assert places == sorted(places)
    assert card.count("### retrieval, test") == 1
    assert "decoded in full, as a server does with `jpeg_decode=exact`" in card
    assert "| teacher | R@1 | 1.00 | 9 |" in card
    assert author_text(card) == "# Title\n\nText."
    assert render_card(card, manifest) == card
    bare = manifest.model_copy(update={"scores": [], "parity": []})
    assert render_card("# Title", bare) == "# Title\n"
