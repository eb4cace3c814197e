"""Requests from the server's own OpenAPI document, right and wrong, by schemathesis.

Its checks compare each answer with the document: status, media type, headers and schema, and
whether wrong data was refused. It runs in a process of its own (`python -m tests.hostile.documented
PORT SEED LIMIT_S`) until its standard input is closed.
"""

import json
import subprocess
import sys
import threading
from typing import Any, Final

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from tests.hostile.attack import Books

# 504: the deadline was a millisecond. 501: the package has no heads for maps.
NO_FAULTS: Final = ["2xx", "3xx", "4xx", 501, 504]
MAX_EXAMPLES: Final = 40
UNKNOWN_HEADER: Final = "in header - object with unexpected properties"


def ask_until(stop: threading.Event, port: int, limit_s: float, books: Books, seed: int) -> None:
    """Let another process ask until `stop` is set, and add its results to the books."""
    command = [sys.executable, "-m", "tests.hostile.documented", str(port), str(seed), str(limit_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            stop.wait()
            printed, _ = process.communicate(timeout=limit_s)
        finally:
            process.kill()
    if process.returncode:
        books.note_defect("documented: the process failed", f"status {process.returncode}")
        return
    results = json.loads(printed)
    for answer in results["answers"]:
        books.note(*answer)
    for defect in results["defects"]:
        books.note_defect(*defect)


class Results:
    """Answers as kind, status and seconds, and defects as name and example."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str, float]] = []
        self.defects: list[tuple[str, str]] = []

    def add(self, recorder: ScenarioRecorder, phase: str) -> None:
        """Add the answers of one operation and the failures of its checks."""
        kind = f"documented {phase}"
        for interaction in recorder.interactions.values():
            response = interaction.response
            if response is None:
                self.defects.append((f"{kind}: no answer", f"{interaction.request.uri}"))
            else:
                self.answers.append((kind, str(response.status_code), response.elapsed))
        checks = [check for many in recorder.checks.values() for check in many]
        for check in checks:
            info = check.failure_info
            if info is not None and not is_right_on_the_wire(info.failure.message):
                what = f"{recorder.label}: {check.name}: {info.failure.title}"
                how = f"{info.failure.message} {info.code_sample}"
                self.defects.append((f"{kind}: {what}", f"{how[:1000]} ... {how[-1000:]}"))


def is_right_on_the_wire(message: str) -> bool:
    """Whether accepted data was wrong only by types in the query, or by an unknown header.

    In a query everything is text: a string instead of a list is a list of one, and an empty list
    is absent. HTTP ignores unknown headers.
    """
    lines = message.splitlines()
    wrong = [line for line in lines if line.strip().startswith("- violates")]
    where = [line for line in lines if line.startswith("Invalid component")]
    if not where:
        return False
    in_query = all(line.endswith(" in query") for line in where)
    is_type = bool(wrong) and all("violates `type`" in line for line in wrong)
    return all(line.endswith(UNKNOWN_HEADER) for line in where) or (in_query and is_type)


def ask_once(stop: threading.Event, config: dict[str, Any], results: Results) -> None:
    """Run once: boundary values of every field, and examples drawn from the seed."""
    document = schemathesis.openapi.from_url(
        f"{config['base-url']}/openapi.json", config=SchemathesisConfig.from_dict(config)
    )
    stream = from_schema(document).execute()
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            results.add(event.recorder, event.phase.value)
        elif isinstance(event, (events.NonFatalError, events.FatalError)) and not stop.is_set():
            results.defects.append(("documented: error", str(event)[:500]))
        # A slow start on a busy machine must not leave the document unchecked.
        if stop.is_set() and results.answers:
            stream.stop()


def main(port: int, seed: int, limit_s: float) -> None:
    """Run all phases again and again with further seeds until the input is closed."""
    results, stop = Results(), threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    config: dict[str, Any] = {
        "seed": seed,
        "base-url": f"http://127.0.0.1:{port}",
        "request-timeout": limit_s,
        "continue-on-failure": True,
        "generation": {"max-examples": MAX_EXAMPLES, "no-shrink": True, "database": "none"},
        "phases": {"stateful": {"enabled": False}},
        "checks": {
            # Data of the right form may still be no image, or a blank text.
            "positive_data_acceptance": {"enabled": False},
            "not_a_server_error": {"expected-statuses": NO_FAULTS},
        },
    }
    while not (stop.is_set() and results.answers):
        ask_once(stop, config, results)
        config["seed"] += 1
    print(json.dumps(vars(results)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
