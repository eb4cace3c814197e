"""Shards to caption, a fake clock, a stand-in for the service and a tiny PaliGemma."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.captioning.fakes import FakeClock, StandIn, make_samples
from tests.training.tiny_paligemma import write_paligemma
from training.captioning.job import JobConfig
from training.data.shards.sample import Sample
from training.data.shards.tar_shard import write_shard


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards, of five and three samples."""
    write_shard(tmp_path / "in/a.tar", make_samples(0, 5))
    write_shard(tmp_path / "in/b.tar", make_samples(5, 3))
    return tmp_path / "in"


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> JobConfig:
    return JobConfig(shards=shards, output=tmp_path / "out")


@pytest.fixture
def shard_of(tmp_path: Path) -> Callable[[list[Sample]], Path]:
    """Write some samples as a folder of one shard."""

    def write(samples: list[Sample]) -> Path:
        write_shard(tmp_path / "given/c.tar", samples)
        return tmp_path / "given"

    return write


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """Google's service, as far as captions need it, on a free port."""
    service = StandIn()
    service.server.daemon_threads = True
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,))
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join(timeout=30)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real PaliGemma of two narrow towers and its processor, with random weights."""
    return write_paligemma(tmp_path_factory.mktemp("paligemma"))
