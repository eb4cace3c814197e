"""Several processes of one evaluation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.labelled.sets import ImageSource
from service.messages import EmbedImagesRequest
from tests.tipserve_cli.evaluation.conftest import SUMMARY, Scripted
from tipserve_cli.engines.engine import UserError
from tipserve_cli.evaluation.answers import Answers, stored_answers
from tipserve_cli.evaluation.shards import FOLDER, Shard, choose_gpu

Write = Callable[..., Path]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4"}


def test_a_shard_is_given_or_torchruns_or_the_only_one() -> None:
    assert Shard.of(None, {}) == Shard(0, 1)
    assert Shard.of(None, TORCHRUN) == Shard(1, 4)
    assert Shard.of("7/8", TORCHRUN) == Shard(7, 8)
    for wrong in ("8/8", "-1/8", "0", "a/b", ""):
        with pytest.raises(UserError, match="such as 0/8"):
            Shard.of(wrong, {})


def test_shards_have_every_item_once() -> None:
    parts = [Shard(number, 3).share(range(10)) for number in range(3)]
    assert sorted(item for part in parts for item in part) == list(range(10))
    assert Shard(0, 1).share(range(10)) == range(10)
    assert not Shard(2, 3).share(range(2))


def test_the_last_one_knows_it(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    assert not Shard(2, 3).finish(tmp_path, "a")
    assert not Shard(0, 3).finish(tmp_path, "a")
    assert not Shard(1, 3).finish(tmp_path, "another evaluation")
    assert Shard(1, 3).finish(tmp_path, "a")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "1"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3", "CUDA_VISIBLE_DEVICES": "4,6"}, ""),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({}, None),
    ],
)
def test_each_process_of_a_machine_has_its_own_gpu(
    given: dict[str, str], wanted: str | None
) -> None:
    choose_gpu(given)
    assert given.get("CUDA_VISIBLE_DEVICES") == wanted


def test_what_all_have_answered_is_not_asked_again(
    engine: Scripted, tmp_path: Path, write: Write
) -> None:
    images = [ImageSource(write(tmp_path / f"{index}.jpg", index)) for index in range(5)]
    engine.images = {index: (index, 1) for index in range(5)}
    request, folder = EmbedImagesRequest(images=()), tmp_path / "report"
    with stored_answers(folder) as stored:
        Answers(engine, "", SUMMARY, stored).ask(images[:1], request)  # type: ignore[arg-type]
    for number in range(2):
        shard = Shard(number, 2)
        with stored_answers(folder, shard) as stored:
            answers = Answers(engine, "", SUMMARY, stored)  # type: ignore[arg-type]
            answers.ask(shard.share(images), request)
    assert sorted(int(one.images[0][0]) for one in engine.requests) == list(range(5))
    engine.requests.clear()
    for shard in (Shard(0, 1), Shard(1, 3)):
        with stored_answers(folder, shard) as stored:
            found = Answers(engine, "", SUMMARY, stored).embed(images, request)  # type: ignore[arg-type]
        assert found[:, 0].tolist() == list(range(5))
    assert not engine.requests
