"""The version of what export writes; packages of another version are not taken from a cache."""

from typing import Final

# Raise it when the same checkpoint would give other graphs or another manifest.
EXPORT_FORMAT: Final = 1
