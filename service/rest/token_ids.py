"""Token ids of an OpenAI tokenizer back to text, by the vocabulary's file alone.

The library tiktoken would do it, too, but it downloads the vocabulary when it has none.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from service.errors import InvalidRequest


class TokenVocabulary:
    """The bytes of each token. Special tokens are not in the file, so no text can contain them."""

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._tokens = tokens

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a `.tiktoken` file: a line for each token, with its bytes as base64 and its id.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such file.
        """
        try:
            rows = [line.split() for line in file.read_bytes().splitlines() if line]
            return cls({int(number): b64decode(token, validate=True) for token, number in rows})
        except ValueError:  # also of base64
            raise ValueError(
                f"token_vocabulary: {file} is not a vocabulary of tiktoken, such as "
                "cl100k_base.tiktoken"
            ) from None

    def decode(self, ids: Sequence[int], param: str) -> str:
        """The text of token ids; bytes that are not UTF-8 become replacement characters.

        Raises:
            InvalidRequest: An id is not in the vocabulary.
        """
        for number in ids:
            if number not in self._tokens:
                text = f"{param} has {number}, which is not a token of the server's vocabulary."
                raise InvalidRequest(text, param=param)
        return b"".join([self._tokens[number] for number in ids]).decode("utf-8", "replace")
