"""Rank-based scores: classification and retrieval."""

import numpy as np
import pytest

from model.scores.ranking import rank
from training.data.scenes import SceneSource
from training.data.sprites import SpriteBank
from training.evaluate.ranking import ClassificationBenchmark, rank_both_ways, single_drawings


@pytest.mark.parametrize(
    ("scores", "right", "ranks", "num_right"),
    [
        (
            [[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.5, 0.1]],
            [[1, 0, 0], [0, 0, 1], [1, 0, 1]],
            [0, 2, 1],
            [1, 1, 2],
        ),
        ([[0.0] * 3] * 2, [[1, 0, 0], [0, 1, 0]], [2, 2], [1, 1]),  # a tie is no answer
        ([[0.5, 0.5, 0.1]], [[1, 1, 0]], [0], [2]),
    ],
)
def test_the_rank_counts_the_wrong_answers_before_the_first_right_one(
    scores: list[list[float]], right: list[list[int]], ranks: list[int], num_right: list[int]
) -> None:
    ranking = rank(np.asarray(scores, np.float32), np.asarray(right, bool))
    assert ranking.rank_Q.tolist() == ranks
    assert ranking.num_right_Q.tolist() == num_right
    for depth in (1, 2, 3):
        share = sum(place < depth for place in ranks) / len(ranks)
        assert ranking.found(depth) == pytest.approx(100 * share)
    with pytest.raises(ValueError, match="needs a right answer"):
        rank(np.zeros((1, 3), np.float32), np.zeros((1, 3), bool))


@pytest.fixture
def benchmark(sprite_bank: SpriteBank, source: SceneSource) -> ClassificationBenchmark:
    """All drawings of the source's names in one style."""
    return single_drawings(
        "drawn", sprite_bank, styles=("noto",), shown=source.names, names=source.names
    )


def test_an_embedding_equal_to_its_class_is_right(benchmark: ClassificationBenchmark) -> None:
    classes_KD = np.eye(len(benchmark.names), dtype=np.float32)
    row = {name: number for number, name in enumerate(benchmark.names)}
    own_MD = classes_KD[[row[label] for label in benchmark.labels]]
    assert benchmark.rank(3 * own_MD, classes_KD).found(1) == 100.0
    next_MD = classes_KD[[(row[label] + 1) % len(row) for label in benchmark.labels]]
    both = benchmark.rank(2 * next_MD + own_MD, classes_KD)
    assert (both.found(1), both.found(2)) == (0.0, 100.0)


DOG, CAT, COW = np.eye(3, dtype=np.float32)


def test_equal_captions_are_one_candidate_and_share_their_images() -> None:
    captions = ["a dog", "a cat", "a dog", "a cow"]
    # The second image of a dog looks like a cat, the cow like a dog. Lengths do not matter.
    images_BD = np.stack([DOG, 0.9 * CAT + 0.1 * COW, 2 * CAT + DOG, DOG + 0.5 * COW])
    both = rank_both_ways(images_BD, captions, np.stack([DOG, 100 * CAT, 0.01 * COW]))
    to_text, to_image = both["image to text"], both["text to image"]
    assert (len(to_text), to_text.num_candidates) == (4, 3)
    assert to_text.rank_Q.tolist() == [0, 0, 1, 1]
    # A dog: its first image is nearest. A cat: its own. A cow: the last image, its own.
    assert (len(to_image), to_image.num_candidates) == (3, 4)
    assert to_image.rank_Q.tolist() == [0, 0, 0]
    assert to_image.num_right_Q.tolist() == [2, 1, 1]
