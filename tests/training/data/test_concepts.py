"""The vocabulary: fifty everyday words, a fifth never trained on, no drawing in two concepts."""

from collections import Counter

from training.data.concepts import FURNITURE_NAMES, all_concepts

NAMES = [concept.name for concept in all_concepts()]


def test_a_fifth_of_the_rarer_drawn_names_is_unseen() -> None:
    assert not [c.name for c in all_concepts() if c.is_common and c.is_unseen]
    furniture = set(FURNITURE_NAMES.values())
    assert furniture <= set(NAMES)
    assert not [c.name for c in all_concepts() if c.is_unseen and c.name in furniture]
    furniture = set(FURNITURE_NAMES.values())
    rest = [c for c in all_concepts() if not c.is_common and c.name not in furniture]
    share = sum(concept.is_unseen for concept in rest) / len(rest)
    assert 0.15 < share < 0.25
    # Chosen by a hash of the name, so these stay what they are when names are added.
    assert {"tiger", "wolf", "pineapple"} <= {c.name for c in rest if c.is_unseen}
    assert {"gorilla", "squid", "violin"} <= {c.name for c in rest if not c.is_unseen}


def test_every_concept_has_drawings_of_its_own() -> None:
    drawings = Counter(drawing for concept in all_concepts() for drawing in concept.drawings)
    assert [drawing for drawing, count in drawings.items() if count > 1] == []
    drawn_otherwise = set(FURNITURE_NAMES.values())
    assert not [c.name for c in all_concepts() if not c.drawings and c.name not in drawn_otherwise]
