"""The graph of pixel labels that the program ships is the one that its source makes."""

from model.export.pixel_labels import pixel_labels_graph
from model.pixel_labels import PIXEL_LABELS_FILE


def test_the_file_is_what_the_source_makes() -> None:
    made = pixel_labels_graph().SerializeToString(deterministic=True)
    assert PIXEL_LABELS_FILE.read_bytes() == made, "run python -m model.export.pixel_labels"
