"""Tells of a download in lines, a few in a minute, in the place of a bar."""

import io
import time
from collections.abc import Callable
from typing import Any, Final

EVERY_S: Final = 10.0


def progress_bar(
    progress: Callable[[str], None], *, of: str, clock: Callable[[], float] = time.monotonic
) -> type[Any]:
    """A class that `huggingface_hub` takes for its bars, and that speaks now and then.

    Args:
        progress: Told what has come so far.
        of: What is downloaded.
        clock: In seconds.
    """
    from tqdm import tqdm  # noqa: PLC0415 - an extra

    class ProgressLines(tqdm):  # type: ignore[misc]
        """Counts like its base, draws nothing."""

        said_at = clock()

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            """Say how far it is, if it is bytes that are counted and a while has passed."""
            now = clock()
            if self.unit == "B" and self.total and now - ProgressLines.said_at >= EVERY_S:
                ProgressLines.said_at = now
                progress(f"downloaded {self.n / 1e6:.0f} of {self.total / 1e6:.0f} MB of {of}")

    return ProgressLines
