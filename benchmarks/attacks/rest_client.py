"""A kept-alive HTTP client over the standard library, with a connection for each thread."""

import http.client
import threading
from typing import Self

from benchmarks.attacks.raw_socket import HttpAnswer, check_error


class RestClient:
    """Asks one server; leaving its context closes the connections of all threads."""

    def __init__(self, port: int, limit_s: float) -> None:
        self._port = port
        self._limit_s = limit_s
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def __enter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close everything; no thread may still ask."""
        for connection in self._connections.values():
            connection.close()

    def ask(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        """Send one request and read its whole answer.

        Raises:
            TimeoutError: It did not come in time.
            ConnectionError: The server closed the connection instead, twice.
            Broken: An error in another form than ours.
        """
        try:
            return self._ask(method, target, body, headers)
        except ConnectionError:
            # The server may close a kept connection just when it is used again.
            return self._ask(method, target, body, headers)

    def _ask(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=self._limit_s
            )
        connection = self._connections[thread]
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException as error:
            # It is opened anew by the next request.
            connection.close()
            if isinstance(error, http.client.HTTPException):
                raise ConnectionResetError("closed before the end of the answer") from error
            raise
        told = {name.lower(): value for name, value in response.getheaders()}
        answer = HttpAnswer(str(response.status), told, content)
        check_error(answer)
        return answer
