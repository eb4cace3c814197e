"""Finds in what Ray says the sentence that one of our own errors was about.

What raised on another machine comes back as text with its stack; the exception itself stays there.
"""

import re
from typing import Final

from service.bulk.job import JobError
from service.bulk.parts import InputError
from service.engines.engine import EngineError

OURS: Final = {kind.__name__ for kind in (EngineError, InputError, JobError)}
RAISED: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*(\w+): (.+)$", re.MULTILINE)
KINDS: Final = ("Error", "Exception", "Interrupt")


def reason(text: str) -> str:
    """The sentence of our own error, else the first exception with its name, else the first line.

    Args:
        text: Of Ray's exception.
    """
    raised = [match for match in RAISED.finditer(text) if match[1].endswith(KINDS)]
    for match in raised:
        if match[1] in OURS:
            return match[2]
    if raised:
        return raised[0][0]
    return text.strip().partition("\n")[0] or "it gave no reason."
