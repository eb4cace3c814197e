"""Third-party servers for tests, started on a free port."""

import re
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

import httpx

LIMIT_S: Final = 60.0
POLL_S: Final = 0.05
LISTENING: Final = re.compile(r'msg="Listening on" address=(\S+)')


class BackgroundServer:
    """A process that logs its address, as Prometheus and Alertmanager do."""

    def __init__(self, command: Sequence[str]) -> None:
        self.log: list[str] = []
        self._address: str | None = None
        self._told = threading.Event()
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Return its base URL once it is ready."""
        if not self._told.wait(LIMIT_S) or self._address is None:
            raise AssertionError("it does not listen:\n" + "".join(self.log))
        url = f"http://{self._address}"
        until = time.monotonic() + LIMIT_S
        while not httpx.get(f"{url}/-/ready", timeout=LIMIT_S).is_success:
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError("it is not ready:\n" + "".join(self.log))
            time.sleep(POLL_S)
        return url

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL after a timeout."""
        self._process.terminate()
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(LIMIT_S)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self.log.append(line)
                if found := LISTENING.search(line):
                    self._address = found[1]
                    self._told.set()
        self._told.set()
