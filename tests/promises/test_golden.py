"""Every recorded request still has its answer, and every honest mistake its error.

The answers are those of commit dc25c9b8. The server is bare.
"""

import json
import math
from typing import Any

import pytest

from tests.processes.server import Server
from tests.promises.golden_requests import ANSWERS, GOLDEN, REQUESTS, Ask, answer

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))
# Of fp32 on another CPU, and of int8: shares of pixels, and parts of an array's deviation.
SHARE = {"student": 0.02, "default": 0.1}
PART = {"student": 0.02, "default": 0.3}
FIXED_NUMBERS = ("index", "label", "shape", "height", "width", "size")


@pytest.mark.parametrize("ask", REQUESTS.values(), ids=lambda ask: ask.name)
def test_a_recorded_request_has_its_answer(student: Server, default: Server, ask: Ask) -> None:
    found = json.loads(
        json.dumps(answer({"student": student, "default": default}[ask.server], ask))
    )
    if ask not in ANSWERS:
        assert found == RECORDED[ask.name]
    else:
        compare(RECORDED[ask.name], found, ask.server, ask.name)


def compare(wanted: Any, found: Any, server: str, path: str) -> None:
    """Compare summaries; numbers that the model computes may differ a little."""
    if isinstance(wanted, dict) and "numbers" in wanted:
        # Two levels are what rounding to int8 or to a colour may change.
        levels = 2 if "int" in wanted["dtype"] else 0
        near = PART[server] * wanted["numbers"][1] + levels + 1e-4
        assert found.keys() == wanted.keys(), path
        for one, other in zip(wanted["numbers"], found["numbers"], strict=True):
            assert abs(one - other) <= near, (path, wanted, found)
        wanted, found = ({**one, "numbers": []} for one in (wanted, found))
    if isinstance(wanted, dict) and "shares" in wanted:
        for label in wanted["shares"].keys() | found["shares"].keys():
            difference = wanted["shares"].get(label, 0) - found["shares"].get(label, 0)
            assert abs(difference) <= SHARE[server], (path, wanted, found)
        wanted, found = ({**one, "shares": {}} for one in (wanted, found))
    if isinstance(wanted, dict):
        assert wanted.keys() == found.keys(), path
        for name, value in wanted.items():
            compare(value, found[name], server, f"{path}.{name}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(found), path
        for index, value in enumerate(wanted):
            compare(value, found[index], server, f"{path}[{index}]")
    elif isinstance(wanted, (int, float)) and not is_fixed(wanted, path):
        is_pixels = isinstance(wanted, int)  # of an area or a box
        near = 4 if is_pixels else SHARE[server]
        assert math.isclose(wanted, found, rel_tol=SHARE[server], abs_tol=near), (path, found)
    else:
        assert wanted == found, path


def is_fixed(value: float, path: str) -> bool:
    """Whether no other CPU has another number."""
    last = path.rpartition(".")[2].partition("[")[0]
    is_model = path.split(".", maxsplit=1)[0] in {"models", "model", "GetModel", "ListModels"}
    return isinstance(value, bool) or last in FIXED_NUMBERS or is_model or last == "status"
