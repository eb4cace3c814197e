"""Answers are asked for once: a stopped evaluation continues."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.labelled.sets import ImageSource, SetError
from service.messages import (
    EmbedImagesRequest,
    EmbedTextsRequest,
    SegmentClass,
    SegmentImagesRequest,
)
from tests.tipserve_cli.evaluation.conftest import Scripted
from tipserve_cli.evaluation.answers import Answers

Write = Callable[..., Path]
EMBED = EmbedImagesRequest(images=())


def sources(folder: Path, write: Write, count: int) -> list[ImageSource]:
    return [ImageSource(write(folder / f"{index}.jpg", index)) for index in range(count)]


def test_a_stopped_evaluation_continues(
    answers: Answers, engine: Scripted, tmp_path: Path, write: Write
) -> None:
    images = sources(tmp_path, write, 5)
    engine.images = {index: (index, 1) for index in range(5) if index != 3}
    with pytest.raises(SetError, match=r"3\.jpg: The image cannot be decoded\. Remove it from"):
        answers.embed(images, EMBED)
    engine.requests.clear()
    engine.images[3] = (3, 1)
    advanced: list[int] = []
    answers = replace(answers, advance=lambda: advanced.append(1))
    assert answers.embed(images, EMBED).tolist() == [[index, 1] for index in range(5)]
    assert sorted(int(one.images[0][0]) for one in engine.requests) == [3, 4]
    assert len(advanced) == 5
    # By content: a copy under another name is known, and a changed file is not.
    engine.requests.clear()
    write(tmp_path / "copy.jpg", 2)
    assert answers.embed([ImageSource(tmp_path / "copy.jpg")], EMBED).tolist() == [[2, 1]]
    assert not engine.requests
    write(tmp_path / "copy.jpg", 0)
    assert answers.embed([ImageSource(tmp_path / "copy.jpg")], EMBED).tolist() == [[0, 1]]


def test_an_answer_depends_on_model_place_and_options(
    answers: Answers, engine: Scripted, tmp_path: Path, write: Write
) -> None:
    images = sources(tmp_path, write, 1)
    engine.images, engine.masks = {0: (0, 1)}, {0: [[1]]}
    others = (
        answers,
        replace(answers, place="http://x"),
        replace(answers, model=replace(answers.model, fingerprint="y")),
        replace(answers, model=replace(answers.model, precision="y")),
    )
    for other in (*others, *others):
        other.embed(images, EMBED)
    answers.embed(images, replace(EMBED, resolution=14))
    assert len(engine.requests) == len(others) + 1
    engine.requests.clear()
    for names in ("a", "b", "a"):
        classes = (SegmentClass(name=names),)
        list(answers.segment(images, SegmentImagesRequest(images=(), classes=classes)))
    assert len(engine.requests) == 2
    # The name under which the model is served changes nothing.
    replace(answers, model=replace(answers.model, name="y")).embed(images, EMBED)
    assert len(engine.requests) == 2


def test_texts_are_asked_for_once(answers: Answers, engine: Scripted) -> None:
    texts = [f"text {number}" for number in range(300)]
    engine.texts = {text: (number, 1) for number, text in enumerate(texts)}
    request = EmbedTextsRequest(texts=())
    for _ in range(2):
        assert answers.embed_texts(texts, request)[:, 0].tolist() == list(range(300))
    assert [len(one.texts) for one in engine.requests] == [256, 44]
