"""Opens object stores by URL, through fsspec."""

from typing import Any

from model.installation import install


class StoreError(ValueError):
    """A URL names no known kind of store, or one whose library is not installed."""


def is_url(place: str) -> bool:
    """Whether this is a URL such as `s3://bucket/images`, and no path."""
    return "://" in place


def open_store(url: str) -> tuple[Any, str]:
    """Open fsspec's file system of a URL, without a request, and the URL's place in it.

    Raises:
        StoreError: The kind of store is unknown, or its library is missing.
    """
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - slow to import

        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{url}: {error}; s3:// and gs:// need {install('stores')}") from error
    return files, str(root).rstrip("/")
