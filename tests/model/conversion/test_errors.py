"""What is not installed is named with its extra, and is not imported to find out."""

import pytest

from model.conversion.errors import MissingExtraError, require


def test_what_is_missing_is_named_with_its_extra() -> None:
    require(("json", "pathlib"), purpose="converting")
    with pytest.raises(
        MissingExtraError, match=r"converting needs no_such_library.*'tipserve\[convert\]'"
    ):
        require(("json", "no_such_library"), purpose="converting")
