"""Finds the key of a paid service, which no setting, record, log or message ever holds."""

from collections.abc import Mapping
from pathlib import Path

VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")


def read_api_key(file: Path | None, environment: Mapping[str, str]) -> str:
    """Read the key from a file if one is named, else from the environment.

    Raises:
        ValueError: There is no key; the message says where one is looked for.
        FileNotFoundError: The named file is not there.
    """
    if file is not None:
        key = file.read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(f"{file} is empty; it should hold the key and nothing else")
        return key
    for variable in VARIABLES:
        if environment.get(variable, "").strip():
            return environment[variable].strip()
    raise ValueError(
        f"no key: set {' or '.join(VARIABLES)}, or name a file that holds it by --api-key-file"
    )
