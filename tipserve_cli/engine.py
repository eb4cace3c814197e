"""What computes for the commands: the client of a server, or of a model in this process."""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from model.image_codec import ImageError
from tipserve_client import Client, ModelInfo, Retry, TipserveError

WINDOW: Final = 16
MAX_ATTEMPTS: Final = 8
# Of a server that has never answered; one that has is waited for, as it may restart.
FIRST_ATTEMPTS: Final = 3
# For all attempts of one request: longer than a restart of the server and than its own limit.
TIMEOUT_S: Final = 300.0
DESCRIBED: Final = (
    *("name", "variant", "embed_dim", "patch_size", "native_size", "outputs"),
    *("runtime", "precision", "device"),
)
T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class UserError(Exception):
    """A command cannot do what it was asked to do; the message says what to change.

    Functions of all rooms here may raise it, and `TipserveError`; `program.py` prints both.
    """


class UsageError(UserError):
    """The command line itself is wrong, whatever the files and the model are."""


class Engine:
    """A client, and threads that keep busy what answers it.

    Attributes:
        client: Of a server, or of a model in this process; thread-safe.
        url: Of the server; empty for a model in this process.
        is_reached: Whether the server has listed its models, which every job asks for first.
    """

    def __init__(self, client: Client, window: int, url: str = "") -> None:
        self.client, self.url, self.is_reached = client, url, False
        self._window = 2 * window
        self._threads = ThreadPoolExecutor(window, "ask")

    def close(self) -> None:
        """Drop waiting requests, wait for the others, and free the model or the connections."""
        self._threads.shutdown(cancel_futures=True)
        self.client.close()

    def in_order(
        self, ask: Callable[[T], R], items: Iterable[T]
    ) -> Generator[tuple[T, "Future[R]"]]:
        """Ask for all items, some at a time; each comes back in order, with its finished future.

        Args:
            ask: Uses the client; runs in several threads.
            items: Read one by one, a little ahead.
        """
        in_flight: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                if len(in_flight) >= self._window:
                    yield _finished(in_flight.popleft())
                in_flight.append((item, self._threads.submit(ask, item)))
            while in_flight:
                yield _finished(in_flight.popleft())
        finally:
            for _, future in in_flight:
                future.cancel()

    def find_model(self, name: str | None) -> ModelInfo:
        """The model with this name, or the default one."""
        models = self.client.models()
        self.is_reached = True
        for model in models:
            if name is None or model.name == name:
                return model
        names = ", ".join(model.name for model in models) or "none"
        raise UserError(f"No model {name!r} is served. Served models: {names}.")


def _finished(asked: tuple[T, "Future[R]"]) -> tuple[T, "Future[R]"]:
    asked[1].exception()  # waits
    return asked


def describe(model: ModelInfo) -> dict[str, object]:
    """What commands and reports say about a model."""
    named = {name: getattr(model, name) for name in DESCRIBED}
    return {**named, "fingerprint": model.package_digest}


def connect(url: str, api_key: str | None) -> Engine:
    """Connect to a server.

    Raises:
        UserError: The URL or the key is invalid.
    """
    numbers = itertools.count(1)

    def explain(error: TipserveError, _: float) -> None:
        """Explain a pause once, but not the first retry, which is usual on a busy server."""
        number = next(numbers)
        if error.code == "unreachable" and not engine.is_reached:
            if number >= FIRST_ATTEMPTS:
                raise error
        elif number == 2:
            logger.warning("%s: %s Retrying, at most %s attempts.", url, error, MAX_ATTEMPTS)

    retry = Retry(
        max_attempts=MAX_ATTEMPTS,
        first_pause_s=0.4,
        max_pause_s=30.0,
        # A busy server stops at its own limit, which is shorter than ours.
        retry_deadline_exceeded=True,
        on_retry=explain,
    )
    try:
        engine = Engine(Client(url, api_key=api_key, timeout_s=TIMEOUT_S, retry=retry), WINDOW, url)
    except ValueError as error:
        raise UsageError(f"--url: {error}.") from error
    return engine


def refuses_image(error: TipserveError) -> bool:
    """Whether the only image of a request is invalid; other images are not affected."""
    field = (error.param or "").partition("[")[0]
    # A body that is too large as a whole names no field: the image makes it so.
    is_too_large = error.param is None and error.code == "request_too_large"
    return is_too_large or (field in {"images", "image"} and error.code != "empty_list")


def reason_of(error: TipserveError) -> str:
    """Why an image is refused, without its place in the request."""
    return error.message.removeprefix(f"{error.param}: ")


@contextmanager
def refusals_of(image: object) -> Iterator[None]:
    """Name the only image of a command in the error if it is refused."""
    try:
        yield
    except TipserveError as error:
        if not refuses_image(error):
            raise
        raise UserError(f"{image}: {reason_of(error)}") from error
    except ImageError as error:
        raise UserError(f"{image}: {error}.") from error
