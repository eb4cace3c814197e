"""WordNet's files, and which members of a word are taken."""

from pathlib import Path

import numpy as np
import pytest

from training.photographs.general_words import WordNet, spread

# Offset, lexicographer's file, type, count of lemmas, lemmas, count of pointers, pointers, gloss.
DATA = """  1 This line is the licence.
00000001 03 n 01 animal 0 000 | a living organism
00000002 05 n 02 dog 0 domestic_dog 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a pet
00000003 05 n 01 poodle 0 001 @ 00000002 n 0000 | an intelligent dog
00000004 06 n 01 dog 0 000 | a support for logs
"""
INDEX = """  1 This line is the licence.
dog n 2 2 @ ~ 2 1 00000002 00000004
domestic_dog n 1 2 @ ~ 1 0 00000002
poodle n 1 1 @ 1 0 00000003
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return WordNet.read(tmp_path)


def test_a_poodle_is_a_dog_and_an_animal_but_no_support_for_logs(wordnet: WordNet) -> None:
    dog, support = wordnet.senses["dog"]
    (poodle,) = wordnet.senses["poodle"]
    assert wordnet.senses["domestic dog"] == [dog]
    assert wordnet.is_below(poodle, dog)
    assert wordnet.is_below(poodle, "00000001")
    assert not wordnet.is_below(dog, poodle)
    assert not wordnet.is_below(poodle, support)


def test_members_that_differ_are_taken_before_alike_ones() -> None:
    alike = [[1, 0.01, 0], [1, 0, 0.01], [1, 0, 0]]
    unit_MD = np.array([*alike, [0, 1, 0]], np.float32)
    assert 3 in spread(unit_MD, 2)
    assert sorted(spread(unit_MD, 9)) == [0, 1, 2, 3]
