"""Requests from the server's own OpenAPI document, right and wrong, by schemathesis.

Its checks say whether each answer is one that the document promises: status, media type, headers,
schema; whether wrong data was refused; and whether it was a server's error. It runs in a process
of its own (`python -m benchmarks.attacks.documented PORT SEED LIMIT_S`) until its input is closed.
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Final

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from benchmarks.attacks.attack import Books

# 504 is what a caller gets who asks for an answer within a millisecond, and 501 who asks a package
# for maps that has no heads.
NO_FAULTS: Final = ["2xx", "3xx", "4xx", 501, 504]
MAX_EXAMPLES: Final = 40
UNKNOWN_HEADER: Final = "in header - object with unexpected properties"


@dataclass(frozen=True, slots=True)
class Document:
    """Where it is, and how long one of its requests may take."""

    port: int
    limit_s: float

    @property
    def base_url(self) -> str:
        """Of all routes."""
        return f"http://127.0.0.1:{self.port}"


def ask_until(stop: threading.Event, document: Document, books: Books, seed: int) -> None:
    """Let another process ask until told to stop, and take over its books."""
    command = [sys.executable, "-m", "benchmarks.attacks.documented"]
    command += [str(document.port), str(seed), str(document.limit_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            stop.wait()
            told, _ = process.communicate(timeout=document.limit_s)
        finally:
            process.kill()
    if process.returncode:
        books.note_defect("documented: the asking process broke", f"status {process.returncode}")
        return
    noted = json.loads(told)
    for kind, status, number, slowest_s in noted["statuses"]:
        books.note(kind, status, slowest_s, number=number)
    for name, examples in noted["defects"].items():
        for example in examples:
            books.note_defect(name, example)


def ask_once(stop: threading.Event, document: Document, books: Books, seed: int) -> None:
    """One run: boundary values of every field, and examples drawn from the seed."""
    config = configuration(document, seed)
    url = f"{document.base_url}/openapi.json"
    stream = from_schema(schemathesis.openapi.from_url(url, config=config)).execute()
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            note(event.recorder, event.phase.value, books)
        elif isinstance(event, (events.NonFatalError, events.FatalError)) and not stop.is_set():
            books.note_defect("documented: error", str(event)[:500])
        if stop.is_set():
            stream.stop()


def configuration(document: Document, seed: int) -> SchemathesisConfig:
    """All checks but one: data of the right form may still be no image, or a blank text."""
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": document.base_url,
            "request-timeout": document.limit_s,
            "continue-on-failure": True,
            "generation": {"max-examples": MAX_EXAMPLES, "no-shrink": True, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            "checks": {
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"expected-statuses": NO_FAULTS},
            },
        }
    )


def note(recorder: ScenarioRecorder, phase: str, books: Books) -> None:
    """Count the answers of one operation, and what its checks found."""
    kind = f"documented {phase}"
    for interaction in recorder.interactions.values():
        response = interaction.response
        if response is None:
            books.note(kind, "no answer", 0.0)
            books.note_defect(f"{kind}: no answer", f"{interaction.request.uri}")
        else:
            books.note(kind, str(response.status_code), response.elapsed)
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                if is_right_on_the_wire(failure.message):
                    continue
                what = f"{recorder.label}: {check.name}: {failure.title}"
                how = f"{failure.message} {check.failure_info.code_sample}"
                books.note_defect(f"{kind}: {what}", f"{how[:1000]} ... {how[-1000:]}")


def is_right_on_the_wire(message: str) -> bool:
    """Whether the accepted data was wrong only by types in the query, or by a further header.

    In a query everything is text: a string where a list should be is a list of one, and an empty
    list is nothing at all. A header that nobody knows is nobody's fault in HTTP.
    """
    wrong = [line for line in message.splitlines() if line.strip().startswith("- violates")]
    where = [line for line in message.splitlines() if line.startswith("Invalid component")]
    if where and all(line.endswith(UNKNOWN_HEADER) for line in where):
        return True
    in_query = bool(where) and all(line.endswith(" in query") for line in where)
    return in_query and bool(wrong) and all("violates `type`" in line for line in wrong)


def written(books: Books) -> str:
    """The books as JSON, with as many examples of a defect as there were defects."""
    statuses = [
        (kind, status, number, books.slowest_s[kind])
        for kind, counts in books.statuses.items()
        for status, number in counts.items()
    ]
    defects = {
        name: examples + [""] * (books.num_defects[name] - len(examples))
        for name, examples in books.defects.items()
    }
    return json.dumps({"statuses": statuses, "defects": defects})


def main(port: int, seed: int, limit_s: float) -> None:
    """Run all phases again and again, each time with another seed, until the input is closed."""
    books, stop = Books(), threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    while not stop.is_set():
        ask_once(stop, Document(port, limit_s), books, seed)
        seed += 1
    print(written(books))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
