"""Files that commands read and write, with errors that name them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from model.files import atomic_write
from model.stores import is_url
from tipserve_cli.engine import UsageError, UserError


def split_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_image(image: str) -> bytes:
    """Read an image file, or standard input for `-`."""
    if image == "-":
        return sys.stdin.buffer.read()
    return Path(image).read_bytes()


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file, or of standard input for `-`."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text.") from error
    lines = text.splitlines()
    if not lines:
        raise UserError(f"{file} has no lines.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{file}: line {number} is blank; remove it.")
    return lines


def write_output(output: Path, content: bytes) -> None:
    """Write a file whole, or to standard output for `-`."""
    if str(output) == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        atomic_write(output, content)


def is_folder(output: str) -> bool:
    """Whether the output of an image command is a folder for several: it has no suffix."""
    return output != "-" and (is_url(output) or Path(output).is_dir() or not Path(output).suffix)


def check_one_image(images: Sequence[str]) -> str:
    """The only image of a command whose output is a file."""
    if len(images) > 1 or Path(images[0]).is_dir():
        raise UsageError("Several images need a folder as --output.")
    return images[0]


def check_output(
    output: Path, suffixes: Sequence[str], purpose: str = "", piped: str | None = None
) -> str:
    """Check the output before anything is computed; returns its suffix in lower case.

    Args:
        output: A file, or `-`.
        suffixes: Of files that can be written.
        purpose: What the suffixes are for; begins with a space.
        piped: The suffix of what is written to standard output, if it can be.
    """
    if piped is not None and str(output) == "-":
        return piped
    suffix = output.suffix.lower()
    if suffix not in suffixes:
        *others, last = suffixes
        known = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"--output must end in {known}{purpose}, not {output.name}.")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: {output.parent} is not a folder.")
    return suffix
