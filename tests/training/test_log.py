"""The loss curve's file: no step twice, whatever cut it short."""

from pathlib import Path

from training.log import LOG_FILE, Log, read_log


def steps(folder: Path) -> list[float]:
    return [row["step"] for row in read_log(folder)]


def test_rows_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 0.1 * step})
    rows = read_log(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.1 * 3)]
    assert all(row["time_s"] > 1e9 for row in rows)


def test_what_came_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.drop_after(0)  # nothing there yet
    for step in range(1, 6):
        log.append({"step": step})
    log.drop_after(3)
    assert steps(tmp_path) == [1, 2, 3]
    log.drop_after(9)
    assert steps(tmp_path) == [1, 2, 3]
    log.drop_after(0)
    assert steps(tmp_path) == []


def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (1, 2):
        log.append({"step": step})
    with (tmp_path / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    log.drop_after(5)
    log.append({"step": 3})
    assert steps(tmp_path) == [1, 2, 3]
