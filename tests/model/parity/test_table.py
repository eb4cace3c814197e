"""The table says what was measured, and nothing better than that."""

from model.manifest import ParityEntry, ParityLimits
from model.parity.table import HEADING, parity_table, replace_section

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


def last_line(entry: ParityEntry) -> str:
    return parity_table([entry]).splitlines()[-1]


def test_every_number_is_told() -> None:
    assert last_line(ENTRY) == (
        "| `onnx/vision_model.onnx` | openvino | bf16 | 7.6e-02 | 0.999900, 0.999950 "
        "| 0.999700, 0.999980 | 99.99 %, 100.00 % | yes |"
    )


def test_what_was_not_measured_or_not_kept_is_told_too() -> None:
    failed = ENTRY.model_copy(update={"mask_agreement": 0.99, "min_cosine_patches": None})
    assert "| 0.999980 | 99.00 %, 100.00 % | no |" in last_line(failed)
    assert "| not finite |" in last_line(ENTRY.model_copy(update={"is_finite": False}))
    depth = ENTRY.model_copy(update={"depth_error": 0.0123})
    assert "depth 1.23 % off" in last_line(depth)
    normals = ENTRY.model_copy(update={"normals_degrees": 0.5})
    assert "normals 0.5 degrees off" in last_line(normals)


def test_a_card_without_the_table_gets_it_at_its_end() -> None:
    card = replace_section("# Title\n\nText.\n", [ENTRY])
    assert card.startswith(f"# Title\n\nText.\n\n{HEADING}\n")
    assert replace_section(card, [ENTRY]) == card
