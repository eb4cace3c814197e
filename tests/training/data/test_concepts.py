"""The vocabulary: fifty everyday words, a fifth never trained on, no drawing in two concepts."""

from collections import Counter

from training.data.concepts import (
    COMMON_NAMES,
    FURNITURE_NAMES,
    NO_ARTICLE,
    all_concepts,
)

NAMES = [concept.name for concept in all_concepts()]


def test_names_are_sorted_and_differ() -> None:
    assert sorted(set(NAMES)) == NAMES


def test_fifty_are_everyday_words() -> None:
    common = [concept.name for concept in all_concepts() if concept.is_common]
    assert len(common) == 50
    assert set(common) == set(COMMON_NAMES)


def test_an_everyday_word_is_never_unseen() -> None:
    assert not [c.name for c in all_concepts() if c.is_common and c.is_unseen]


def test_what_only_renders_show_is_never_unseen() -> None:
    furniture = set(FURNITURE_NAMES.values())
    assert furniture <= set(NAMES)
    assert not [c.name for c in all_concepts() if c.is_unseen and c.name in furniture]


def test_about_a_fifth_of_the_rest_is_unseen() -> None:
    furniture = set(FURNITURE_NAMES.values())
    rest = [c for c in all_concepts() if not c.is_common and c.name not in furniture]
    share = sum(concept.is_unseen for concept in rest) / len(rest)
    assert 0.15 < share < 0.25
    # Chosen by a hash of the name, so these stay what they are when names are added.
    assert {"tiger", "wolf", "pineapple"} <= {c.name for c in rest if c.is_unseen}
    assert {"gorilla", "squid", "violin"} <= {c.name for c in rest if not c.is_unseen}


def test_no_drawing_shows_two_concepts() -> None:
    drawings = Counter(drawing for concept in all_concepts() for drawing in concept.drawings)
    assert [drawing for drawing, count in drawings.items() if count > 1] == []


def test_every_concept_has_something_that_shows_it() -> None:
    drawn_otherwise = set(FURNITURE_NAMES.values())
    assert not [c.name for c in all_concepts() if not c.drawings and c.name not in drawn_otherwise]


def test_words_without_an_article_are_concepts() -> None:
    assert set(NAMES) >= NO_ARTICLE


def test_near_synonyms_are_one_concept() -> None:
    drawings = {concept.name: concept.drawings for concept in all_concepts()}
    assert {"dog face", "poodle"} <= set(drawings["dog"])
    assert not {"automobile", "laptop", "necktie", "wastebasket"} & set(NAMES)
