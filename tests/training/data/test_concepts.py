"""The vocabulary: fifty everyday words, a fifth never trained on, no drawing in two concepts."""

from collections import Counter

from training.data.concepts import FURNITURE_NAMES, NO_ARTICLE, all_concepts

CONCEPTS = {concept.name: concept for concept in all_concepts()}
FURNITURE = set(FURNITURE_NAMES.values())


def test_fifty_words_are_everyday_and_a_fifth_of_the_rarer_drawn_names_is_unseen() -> None:
    assert sum(concept.is_common for concept in CONCEPTS.values()) == 50
    assert list(CONCEPTS) == sorted(CONCEPTS)
    assert CONCEPTS.keys() >= FURNITURE | NO_ARTICLE
    rarer = {c.name for c in CONCEPTS.values() if not c.is_common} - FURNITURE
    unseen = {concept.name for concept in CONCEPTS.values() if concept.is_unseen}
    assert unseen < rarer
    assert 0.15 < len(unseen) / len(rarer) < 0.25
    # Chosen by a hash of the name, so these stay what they are when names are added.
    assert {"tiger", "wolf", "pineapple"} <= unseen
    assert {"gorilla", "squid", "violin"} <= rarer - unseen


def test_every_concept_has_drawings_of_its_own() -> None:
    drawings = Counter(drawing for concept in CONCEPTS.values() for drawing in concept.drawings)
    assert set(drawings.values()) == {1}
    assert {c.name for c in CONCEPTS.values() if not c.drawings} <= FURNITURE
