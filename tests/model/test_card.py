"""The card is the author's text, then every measured number."""

from model.card import author_text, parity_table, render_card
from model.manifest import ParityEntry, ParityLimits, ScoreEntry
from model.package import ModelPackage

ENTRY = ParityEntry(
    file="onnx/vision_model.onnx",
    runtime="openvino",
    precision="bf16",
    reference="torch",
    sizes=[(1, 56, 56)],
    max_abs_diff=0.0756,
    min_cosine_cls=0.9999,
    mean_cosine_cls=0.99995,
    min_cosine_patches=0.9997,
    mean_cosine_patches=0.99998,
    mask_agreement=0.99999,
    clear_mask_agreement=1.0,
    limits=ParityLimits(min_mask_agreement=0.995),
)


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


def test_a_row_rounds_shares_down_and_marks_failures() -> None:
    def last_line(**changes: object) -> str:
        return parity_table([ENTRY.model_copy(update=changes)]).splitlines()[-1]

    assert last_line() == (
        "| `onnx/vision_model.onnx` | openvino | bf16 | 7.6e-02 | 0.999900, 0.999950 "
        "| 0.999700, 0.999980 | 99.99 %, 100.00 % | yes |"
    )
    failed = last_line(mask_agreement=0.99, min_cosine_patches=None)
    assert "| 0.999980 | 99.00 %, 100.00 % | no |" in failed
    assert "| not finite |" in last_line(is_finite=False)
    assert "depth 1.23 % off" in last_line(depth_error=0.0123)
