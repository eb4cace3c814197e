"""The cause of a failure on another machine is found in Ray's text."""

import pytest

from tipserve_cli.bulk.on_ray import find_reason

# As Ray 2.60 writes it.
TEXT = """\x1b[36mray::Map(f)()\x1b[39m (pid=32375, ip=192.0.2.2)
  File "job.py", line 4, in f
    def f(r): raise {raised}
tipserve_cli.bulk.parts.{raised}

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXT.format(raised="UserError: x is missing: name another."), "x is missing: name"),
        (TEXT.format(raised="MemoryError: no room"), "tipserve_cli.bulk.parts.MemoryError: no"),
        ("Could not connect.\nmore", "Could not connect."),
        ("", "no reason given."),
    ],
)
def test_the_cause_is_found(text: str, found: str) -> None:
    assert find_reason(text).startswith(found)
