"""The line of a batch's cost, and how it follows what batches take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lanes.latency_model import FADE_S, MAX_BUCKETS, CostBook, CostCurve, fit_curve
from service.lanes.work import BatchLimits, Bucket

SMALL, LARGE, TEXT = Bucket("image", (28, 28)), Bucket("image", (56, 56)), Bucket("text", (8,))
LIMITS = BatchLimits(max_items=4, max_cost=100)


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> CostBook:
    made = CostBook({"image": LIMITS, "text": LIMITS}, clock)
    curves = {SMALL: CostCurve(0.1, 0.2), TEXT: CostCurve(0.4, 0.1)}
    made.begin(curves, lambda bucket: {SMALL: 4, TEXT: 8}[bucket])
    return made


@given(
    intercept_s=st.floats(0, 10),
    slope_s=st.floats(0.001, 10),
    sizes=st.sets(st.integers(1, 64), min_size=2),
)
def test_a_straight_line_is_found_again(
    intercept_s: float, slope_s: float, sizes: set[int]
) -> None:
    line = CostCurve(intercept_s, slope_s)
    found = fit_curve({n: line.seconds(n) for n in sizes})
    for n in (1, 5, 64):
        assert found.seconds(n) == pytest.approx(line.seconds(n), rel=1e-6, abs=1e-6)


@given(st.dictionaries(st.integers(1, 64), st.floats(0, 100), min_size=1))
def test_noise_never_makes_items_or_batches_cheaper_than_nothing(times: dict[int, float]) -> None:
    found = fit_curve(times)
    assert found.slope_s >= 0
    assert found.intercept_s >= -1e-9


def test_the_curve_follows_what_batches_take_and_forgets(book: CostBook, clock: Clock) -> None:
    for _ in range(100):
        book.observe(SMALL, 2, 1.0)  # twice what was measured
    assert book.batch_s(SMALL, 2) == pytest.approx(1.0, rel=0.01)
    assert book.curves()[SMALL].slope_s == pytest.approx(0.4, rel=0.01)
    assert book.batch_s(TEXT, 1) == pytest.approx(0.5), "each bucket learns for itself"
    clock.now = 10 * FADE_S
    assert book.batch_s(SMALL, 2) == pytest.approx(0.5, rel=0.01)


def test_a_start_at_a_bad_moment_is_made_up_for(book: CostBook, clock: Clock) -> None:
    for _ in range(10):
        book.observe(SMALL, 2, 0.1)  # a fifth of what was measured
    assert book.batch_s(SMALL, 2) < 0.18
    for _ in range(90):
        book.observe(SMALL, 2, 0.1)
    assert book.batch_s(SMALL, 2) == pytest.approx(0.1, rel=0.01)
    clock.now = 10 * FADE_S
    assert book.batch_s(SMALL, 2) == pytest.approx(0.1, rel=0.01)


def test_one_accident_moves_the_curve_little(book: CostBook) -> None:
    book.observe(SMALL, 1, 1000.0)
    assert book.batch_s(SMALL, 1) < 1.5 * 0.3


def test_an_item_costs_least_in_a_full_batch(book: CostBook) -> None:
    assert book.item_s(SMALL) == pytest.approx(0.2 + 0.1 / 4)


def test_a_shape_that_was_never_measured_costs_by_its_size(book: CostBook) -> None:
    assert book.batch_s(LARGE, 1) == pytest.approx(4 * 0.3)
    book.observe(LARGE, 2, 8.0)
    assert book.batch_s(LARGE, 1) == pytest.approx(4.0), "until one has run"


def test_least_time_is_of_the_cheapest_kind_spread_over_lanes(book: CostBook) -> None:
    rate_s = (0.1 + 0.4 / 4) / 8
    assert book.least_s(4, 2) == pytest.approx(4 * rate_s), "one item goes to one lane"
    assert book.least_s(16, 2) == pytest.approx(8 * rate_s)
    assert book.least_s(0, 2) == 0


def test_work_of_one_kind_takes_what_that_kind_takes(clock: Clock) -> None:
    deep = Bucket("depth", (28, 28))
    book = CostBook({"image": LIMITS, "depth": LIMITS}, clock)
    book.begin({SMALL: CostCurve(0, 0.2), deep: CostCurve(0, 0.6)}, lambda _: 4)
    assert book.least_s(8, 1, "depth") == pytest.approx(1.2)
    assert book.least_s(8, 1, "image") == book.least_s(8, 1) == pytest.approx(0.4)
    assert book.least_s(8, 1, "normals") == book.least_s(8, 1), "of which nothing was measured"


def test_nothing_is_claimed_before_anything_was_measured(clock: Clock) -> None:
    book = CostBook({"image": LIMITS, "text": LIMITS}, clock)
    assert (book.batch_s(SMALL, 3), book.item_s(SMALL), book.least_s(5, 1)) == (0, 0, 0)


def test_shapes_that_callers_make_up_take_bounded_memory(book: CostBook) -> None:
    for height in range(14, 14 * (MAX_BUCKETS + 50), 14):
        book.observe(Bucket("image", (height, 14)), 1, 1.0)
    assert len(book._met) == MAX_BUCKETS
    assert set(book.curves()) == {SMALL, TEXT}
