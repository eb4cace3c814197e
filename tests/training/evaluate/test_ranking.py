"""Rank-based scores: classification and retrieval."""

import numpy as np
import pytest

from model.encoder import Tipsv2Encoder
from model.scores.bootstrap import bootstrap
from model.scores.ranking import Ranking, found_within, rank
from training.data.scenes import Scene, SceneSource
from training.data.sprites import SpriteBank
from training.evaluate.encoder import encode_images, encode_texts
from training.evaluate.ranking import (
    SETTINGS,
    ClassificationBenchmark,
    RetrievalSetting,
    rank_both_ways,
    retrieve,
    single_drawings,
)


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


def test_chance_is_what_shuffled_candidates_give() -> None:
    right_QC = np.zeros((20_000, 12), bool)
    right_QC[:, 0] = True
    right_QC[::2, 1:3] = True  # every other query has three
    rng = np.random.default_rng(0)
    ranking = rank(rng.random(right_QC.shape, dtype=np.float32), right_QC)
    for depth in (1, 5):
        assert ranking.found(depth) == pytest.approx(ranking.chance(depth), abs=1.0)
    # By hand, the first place: 1/12 and 3/12, each for half of the queries.
    assert ranking.chance(1) == pytest.approx(100 * (1 / 12 + 3 / 12) / 2)


def test_the_metric_weights_queries() -> None:
    ranking = Ranking(
        rank_Q=np.asarray([0, 4, 9]), num_right_Q=np.ones(3, np.int64), num_candidates=10
    )
    weights_RQ = np.asarray([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    assert found_within(5)(ranking, weights_RQ).tolist() == pytest.approx([200 / 3, 100, 100 / 3])
    interval = bootstrap(found_within(5), ranking)
    assert interval.value == pytest.approx(ranking.found(5))
    assert interval.low < interval.value < interval.high


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_model_retrieves_by_the_token_of_its_captions(
    setting: RetrievalSetting, encoder: Tipsv2Encoder, scenes: list[Scene]
) -> None:
    features = encode_images(encoder, [scene.pixels_SS3 for scene in scenes])
    captions = [getattr(scene.captions, setting.captions) for scene in scenes]
    texts_UD = encode_texts(encoder, list(dict.fromkeys(captions)))
    found = retrieve(encoder, scenes, features=features, setting=setting)
    expected = rank_both_ways(features[setting.token], captions, texts_UD)
    for direction, ranking in found.items():
        assert ranking.rank_Q.tolist() == expected[direction].rank_Q.tolist()
