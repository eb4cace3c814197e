"""Retrieval: equal captions are one, either direction asks what it should, tokens are the right."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.data.captions import Captions
from training.data.scenes import Scene
from training.evaluate.encoder import SceneEncoder, encode_texts
from training.evaluate.ranking import SETTINGS, RetrievalSetting, rank_both_ways, retrieve

DOG, CAT, COW = np.eye(3, dtype=np.float32)


def test_equal_captions_are_one_candidate_and_share_their_images() -> None:
    captions = ["a dog", "a cat", "a dog", "a cow"]
    # The second image of a dog looks like a cat, the cow most of all like a dog.
    images_BD = np.stack([DOG, 0.9 * CAT + 0.1 * COW, 2 * CAT + DOG, DOG + 0.5 * COW])
    both = rank_both_ways(images_BD, captions, np.stack([DOG, CAT, COW]))
    to_text, to_image = both["image to text"], both["text to image"]
    assert (len(to_text), to_text.num_candidates) == (4, 3)
    assert to_text.rank_Q.tolist() == [0, 0, 1, 1]
    assert to_text.num_right_Q.tolist() == [1, 1, 1, 1]
    # A dog: its first image is nearest. A cat: its own. A cow: the last image, its own.
    assert (len(to_image), to_image.num_candidates) == (3, 4)
    assert to_image.rank_Q.tolist() == [0, 0, 0]
    assert to_image.num_right_Q.tolist() == [2, 1, 1]


def test_lengths_do_not_matter() -> None:
    captions = ["a dog", "a cat"]
    images_BD = np.stack([DOG + 0.2 * CAT, 0.01 * CAT])
    both = rank_both_ways(images_BD, captions, np.stack([DOG, 100 * CAT]))
    assert both["image to text"].rank_Q.tolist() == [0, 0]
    assert both["text to image"].rank_Q.tolist() == [0, 0]


def test_each_caption_is_searched_with_the_token_it_was_trained_with() -> None:
    pairs = {(setting.captions, setting.token) for setting in SETTINGS}
    assert pairs == {("short", "cls1"), ("scene", "cls2")}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_model_is_ranked_by_its_own_embeddings(
    setting: RetrievalSetting,
    encoder_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    scenes: list[Scene],
) -> None:
    features = SceneEncoder(encoder_model, tokenizer, scenes).features
    found = retrieve(encoder_model, tokenizer, scenes, features=features, setting=setting)
    captions = [
        scene.captions.short if setting.captions == "short" else scene.captions.scene
        for scene in scenes
    ]
    texts_UD = encode_texts(encoder_model, tokenizer, list(dict.fromkeys(captions)))
    expected = rank_both_ways(features[setting.token], captions, texts_UD)
    for direction, ranking in expected.items():
        assert found[direction].rank_Q.tolist() == ranking.rank_Q.tolist()
    other = rank_both_ways(
        features["cls2" if setting.token == "cls1" else "cls1"], captions, texts_UD
    )
    ranks = [both["image to text"].rank_Q.tolist() for both in (expected, other)]
    assert ranks[0] != ranks[1]


def test_scenes_with_one_caption_leave_nothing_to_search(
    encoder_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, scenes: list[Scene]
) -> None:
    same = Captions(names=("dog",), short="a dog", keywords="dog", scene="a dog, somewhere")
    alike = [replace(scene, captions=same) for scene in scenes]
    features = SceneEncoder(encoder_model, tokenizer, alike).features
    both = retrieve(encoder_model, tokenizer, alike, features=features, setting=SETTINGS[0])
    assert both["image to text"].found(1) == both["image to text"].chance(1) == 100.0
    assert (len(both["text to image"]), both["text to image"].found(1)) == (1, 100.0)
