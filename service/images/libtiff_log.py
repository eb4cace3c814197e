"""libtiff, by which Pillow reads TIFF, writes what is wrong with a file straight to standard error.

There it would stand between the lines of the log, as often as a caller likes; the caller's answer
says it already.
"""

import ctypes
import re
from pathlib import Path
from typing import Final

LIBRARY: Final = re.compile(r"/\S*/libtiff[^/\s]*\.so[.\d]*")


def silence_libtiff() -> bool:
    """Take the error handler away from the library that is loaded in this process.

    Returns:
        Whether it was found; where Pillow has it built in, it is not.
    """
    try:
        mapped = LIBRARY.search(Path("/proc/self/maps").read_text(encoding="utf-8"))
        if mapped is None:
            return False
        set_handler = ctypes.CDLL(mapped.group()).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return False
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)
    return True
