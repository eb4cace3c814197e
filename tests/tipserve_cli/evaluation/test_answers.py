"""Answers are asked for once: a stopped evaluation continues."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.labelled.sets import ImageSource, SetError
from tests.tipserve_cli.conftest import Scripted
from tipserve_cli.engine import Engine
from tipserve_cli.evaluation.answers import Answers, Question
from tipserve_client import Client

Write = Callable[..., Path]
EMBED = Question(about="embedding", options={"outputs": "cls1"})


def sources(folder: Path, write: Write, count: int) -> list[ImageSource]:
    return [ImageSource(write(folder / f"{index}.jpg", index)) for index in range(count)]


def test_a_stopped_evaluation_continues(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    images = sources(tmp_path, write, 5)
    scripted.images = {index: (index, 1) for index in range(5) if index != 3}
    with pytest.raises(SetError, match=r"3\.jpg: the image cannot be decoded Remove it from"):
        answers.embed(images, EMBED)
    scripted.requests.clear()
    scripted.images[3] = (3, 1)
    advanced: list[int] = []
    answers = replace(answers, advance=lambda: advanced.append(1))
    assert answers.embed(images, EMBED).tolist() == [[index, 1] for index in range(5)]
    assert sorted(int(one.images[0][0]) for one in scripted.requests) == [3, 4]
    assert len(advanced) == 5
    # By content: a copy under another name is known, and a changed file is not.
    scripted.requests.clear()
    write(tmp_path / "copy.jpg", 2)
    assert answers.embed([ImageSource(tmp_path / "copy.jpg")], EMBED).tolist() == [[2, 1]]
    assert not scripted.requests
    write(tmp_path / "copy.jpg", 0)
    assert answers.embed([ImageSource(tmp_path / "copy.jpg")], EMBED).tolist() == [[0, 1]]


def test_an_answer_depends_on_model_place_and_options(
    answers: Answers, scripted: Scripted, tmp_path: Path, write: Write
) -> None:
    images = sources(tmp_path, write, 1)
    scripted.images, scripted.masks = {0: (0, 1)}, {0: [[1]]}
    others = (
        answers,
        replace(answers, engine=Engine(Client(scripted), 1, "http://x")),
        replace(answers, model=replace(answers.model, package_digest="y")),
        replace(answers, model=replace(answers.model, precision="y")),
    )
    for other in (*others, *others):
        other.embed(images, EMBED)
    answers.embed(images, replace(EMBED, options={**EMBED.options, "resolution": 14}))
    assert len(scripted.requests) == len(others) + 1
    scripted.requests.clear()
    for names in ("a", "b", "a"):
        list(answers.each(images, Question(about="mask", options={}, classes=(names,))))
    assert len(scripted.requests) == 2
    # The name under which the model is served changes nothing.
    replace(answers, model=replace(answers.model, name="y")).embed(images, EMBED)
    assert len(scripted.requests) == 2
