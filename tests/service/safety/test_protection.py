"""The bodies of all requests together stay within a limit."""

import threading

import pytest

from service.errors import Overloaded
from service.monitoring.metrics import Metrics
from service.safety.protection import BodyMemory, fitting_connections


@pytest.fixture
def memory(metrics: Metrics) -> BodyMemory:
    return BodyMemory(100, metrics)


def test_a_share_grows_and_is_given_back_once(memory: BodyMemory) -> None:
    with memory.share() as other, memory.share() as share:
        other.hold(5)
        for num_bytes in (10, 40, 30):
            share.hold(num_bytes)
        assert memory.num_bytes == 45, "the most at once, not the sum"
        for _ in range(2):
            share.give_back()
            assert memory.num_bytes == 5, "the bytes of another request stay reserved"
    assert memory.num_bytes == 0


def test_a_body_that_does_not_fit_is_refused_and_changes_nothing(
    memory: BodyMemory, metrics: Metrics
) -> None:
    with memory.share() as first, memory.share() as second:
        first.hold(70)
        with pytest.raises(Overloaded) as caught:
            second.hold(31)
        assert (caught.value.code, caught.value.retry_after_s) == ("body_memory_full", 1.0)
        assert memory.num_bytes == 70
        memory.check(1)
        second.hold(30)
        with pytest.raises(Overloaded):
            memory.check(1)
    assert memory.num_bytes == 0
    labels = {"reason": "body_memory"}
    assert metrics.registry.get_sample_value("tipserve_rejected_total", labels) == 2


def test_threads_never_hold_more_than_all(memory: BodyMemory) -> None:
    most, refused = [0], [0]

    def work() -> None:
        for _ in range(300):
            try:
                with memory.share() as share:
                    share.hold(30)
                    most[0] = max(most[0], memory.num_bytes)
            except Overloaded:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 30 <= most[0] <= 90
    assert memory.num_bytes == 0


@pytest.mark.parametrize(("num_descriptors", "fitting"), [(3272, 1024), (1736, 512), (248, 16)])
def test_connections_are_as_many_as_descriptors_allow(
    caplog: pytest.LogCaptureFixture, num_descriptors: int, fitting: int
) -> None:
    found = fitting_connections(1024, num_descriptors=num_descriptors, num_others=200)
    assert found == fitting
    said = f"may open {num_descriptors}: {fitting} connections are allowed for each; raise the"
    assert (said in caplog.text) == (fitting < 1024)


def test_a_limit_of_descriptors_without_room_fails_the_start() -> None:
    with pytest.raises(ValueError, match=r"may open 230; raise the limit .* to 3272"):
        fitting_connections(1024, num_descriptors=230, num_others=200)
