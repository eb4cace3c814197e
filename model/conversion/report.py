"""What a command says while it works: lines for people, or JSON lines for the program that asked.

```
{"step": "exporting the vision graph"}      what is being done
{"warning": "..."}                          what went wrong and was mended
{"result": "/cache/packages/..."}           the end: the package's folder
{"error": "..."}                            the end: a sentence for whoever asked
```
"""

import json
import os
import sys
from typing import IO, Literal, Protocol

Kind = Literal["step", "warning", "result", "error"]


class Report(Protocol):
    """Where a command's words go."""

    def say(self, kind: Kind, text: str) -> None:
        """Say one thing, at once."""


class Lines:
    """Steps and troubles on standard error, the result on standard output."""

    def say(self, kind: Kind, text: str) -> None:
        """Print one line."""
        if kind == "result":
            print(text, flush=True)
            return
        prefix = "" if kind == "step" else f"{kind}: "
        print(f"{prefix}{text}", file=sys.stderr, flush=True)


class JsonLines:
    """Everything as JSON on what is standard output now; what libraries print goes elsewhere."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, kind: Kind, text: str) -> None:
        """Write one line."""
        self._out.write(json.dumps({kind: text}) + "\n")
        self._out.flush()
