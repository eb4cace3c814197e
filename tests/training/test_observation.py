"""The log of a run."""

from pathlib import Path

from training.observation import LOG_FILE, Log, read_log


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.drop_after(0)
    assert read_log(tmp_path) == []
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1.0})
    log.drop_after(2)
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    log.append({"step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 1), (2, 1), (3, 0.5)]


def test_a_line_that_a_killed_process_left_incomplete_is_removed(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append({"step": 1})
    with (tmp_path / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    log.drop_after(5)
    assert [row["step"] for row in read_log(tmp_path)] == [1]
