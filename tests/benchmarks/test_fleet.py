"""The page about a fleet has the numbers that the script computes."""

import re
from pathlib import Path

import pytest

from benchmarks.fleet import parse, rounds_of_scaling, show


def test_the_page_is_what_the_script_prints(project_root: Path) -> None:
    page = (project_root / "docs" / "fleet.md").read_text(encoding="utf-8")
    found = re.findall(r"benchmarks\.fleet([^\n`]*)\n```\n\n```\n([^`]*)```", page)
    assert len(found) == 2
    for options, printed in found:
        assert printed.splitlines() == show(parse(options.split()))


@pytest.mark.parametrize(("start", "minutes"), [(10, 9), (2, 1), (1000, 23)])
def test_a_tenth_leaves_each_minute_and_at_least_one(start: int, minutes: int) -> None:
    assert rounds_of_scaling(start, max(1, start // 10)) == minutes
