"""Workers divide every total of the settings, and `auto` chooses how many there are."""

from typing import Any

import pytest
from pydantic import ValidationError

from service import settings as settings_module
from service.settings import Settings, load_settings
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
    assert {share.num_workers for share in shares} == {num_workers}


def test_one_cpu_is_enough_for_each_worker_and_an_answer_fits_into_a_share() -> None:
    share = share_of(Settings(cpus=1), 1, 2)
    assert share.cpus == 1
    assert share.max_answer_bytes == share.max_work_memory_bytes == 80 * 2**20
    large = Settings(max_work_memory_bytes=2**30)
    assert share_of(large, 0, 2).max_answer_bytes == large.max_answer_bytes


def test_what_was_not_set_stays_unset() -> None:
    share = share_of(Settings(cpus=4), 0, 2)
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
    assert WorkerPlace.from_text(place.to_text()) == place
    own = place.settings(Settings(ports_file="file"))
    assert (own.http_port, own.grpc_port, own.ports_file) == (1, 2, None)
    for text in ("", "3", "{}", '{"number": 1}'):
        with pytest.raises(ValueError, match="only a server with --workers"):
            WorkerPlace.from_text(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": 0}, "above 0, or auto"),
        ({"workers": "some"}, "above 0, or auto"),
        ({"workers": 2, "enable_management": True}, "enable_management needs workers=1"),
        ({"workers": 2, "device": "gpu"}, "workers must be 1 with device=gpu"),
        ({"workers": 2, "lanes": 1}, "lanes is divided among the workers.*2 for 2; it is 1"),
        ({"workers": 17}, "max_queue_patches is divided among the workers"),
        ({"workers": 5}, "max_body_memory_bytes is divided.*33554432 for each"),
    ],
)
def test_what_cannot_be_divided_is_an_error(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "gpus", "num_workers"),
    [
        ({"cpus": 2}, (), 1),
        ({"cpus": 15}, (), 1),
        ({"cpus": 16}, (), 2),
        ({"cpus": 64}, (), 4),  # with the default of max_body_memory_bytes
        ({"cpus": 64, "max_body_memory_bytes": 2**30}, (), 8),
        ({"cpus": 64, "enable_management": True}, (), 1),
        ({"cpus": 64}, ("a GPU",), 1),
        ({"cpus": 64, "device": "cpu"}, ("a GPU",), 4),
        ({"cpus": 64, "lanes": 1, "max_streams": 1}, (), 1),
    ],
)
def test_auto_is_one_worker_for_each_eight_cpus(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], gpus: tuple[str, ...], num_workers: int
) -> None:
    hardware = type("Hardware", (), {"gpus": gpus})
    monkeypatch.setattr(settings_module, "this_hardware", hardware)
    settings = Settings.model_validate({"workers": "auto", **values})
    assert settings.num_workers == num_workers


def test_a_flag_and_a_variable_give_a_number_or_auto() -> None:
    assert load_settings(["--workers=3"], {}).workers == 3
    assert load_settings(["--workers", "auto"], {}).workers == "auto"
    assert load_settings([], {"TIPSERVE_WORKERS": "2"}).num_workers == 2
    assert load_settings([], {}).num_workers == 1
