"""Workers divide every total of the settings."""

import pytest

from service.settings import Settings
from service.workers.place import WorkerPlace, share_of


@pytest.mark.parametrize("num_workers", [2, 3])
def test_the_shares_are_the_total(num_workers: int) -> None:
    whole = Settings(cpus=5, lanes=7, pool_threads=5, max_body_memory_bytes=2**28 + 1)
    shares = [share_of(whole, number, num_workers) for number in range(num_workers)]
    for name, (total, _) in whole.totals().items():
        parts = [getattr(share, name) for share in shares]
        assert sum(parts) == total, name
        assert max(parts) - min(parts) <= 1, name
    assert sum(share.cpus or 0 for share in shares) == 5
    assert {share.workers for share in shares} == {num_workers}


def test_one_cpu_is_enough_for_each_worker() -> None:
    share = share_of(Settings(cpus=1), 1, 2)
    assert share.cpus == 1
    assert (share.lanes, share.pool_threads) == (None, None)
    assert "max_batch_patches" not in share.model_fields_set


def test_a_place_is_read_from_the_text_that_it_wrote() -> None:
    place = WorkerPlace(
        number=1,
        num_workers=2,
        num_starting=1,
        ports={"http": 1, "grpc": 2, "metrics": 3},
        report_socket="\0name",
    )
    assert WorkerPlace.model_validate_json(place.model_dump_json()) == place
    own = place.settings(Settings(ports_file="file"))
    assert (own.http_port, own.grpc_port, own.ports_file) == (1, 2, None)
