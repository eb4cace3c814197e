"""Record `golden.json` from the sources of a folder: `python -m tests.promises.record FOLDER`.

The answers are a contract. Record again only for requests that are new or whose answer changes on
purpose, and look at the difference.
"""

import json
import sys
from pathlib import Path

from tests.processes.server import start_server
from tests.promises.conftest import DEFAULT, STUDENT
from tests.promises.golden_requests import GOLDEN, REQUESTS, answer


def main() -> None:
    """Ask a server of these sources everything, and write its answers."""
    root = Path(sys.argv[1]).resolve()
    with start_server(*STUDENT, root=root) as student, start_server(*DEFAULT, root=root) as default:
        servers = {"student": student, "default": default}
        answers = {name: answer(servers[ask.server], ask) for name, ask in REQUESTS.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in answers.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
