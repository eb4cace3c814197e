"""Tokenise texts, and put class names into prompt templates.

Shapes: B batch, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model.package import ModelPackage, PackageError

PAD_ID = 0
TOKENIZER_FILE = "tokenizer.json"

# The nine templates of the TIPSv2 zero-shot protocol, a subset of CLIP's that TCL uses.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "tcl": (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Tokenised texts, int64, padded with 0 on the right; the mask is 1 for tokens."""

    token_ids_BL: NDArray[np.int64]
    mask_BL: NDArray[np.int64]


class TextTokenizer:
    """A package's tokenizer, whatever its kind: it adds the tokens that `tokenizer.json` asks for.

    Thread-safe.

    Args:
        tokenizer: The file `tokenizer.json`, or a tokenizer, which is copied.
        max_tokens: Tokens of a text, with those that the tokenizer adds; the others are cut off.
    """

    def __init__(self, tokenizer: Path | Tokenizer, *, max_tokens: int = 64) -> None:
        if isinstance(tokenizer, Path):
            try:
                self._tokenizer = Tokenizer.from_file(str(tokenizer))
            except Exception as error:  # the library raises no other class
                raise PackageError(
                    f"{tokenizer} is not a tokenizer of the library tokenizers; export the model "
                    "again"
                ) from error
        else:
            self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        # A caller's "<pad>" is spelled out, as SentencePiece does. As a token it would be padding.
        self._tokenizer.encode_special_tokens = True
        self.max_tokens = max_tokens
        self._check_special_tokens()

    @classmethod
    def from_package(cls, package: ModelPackage) -> Self:
        """Load the tokenizer of a package, with the package's token limit."""
        return cls(package.file(TOKENIZER_FILE), max_tokens=package.manifest.max_text_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids, from 0 on."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        self._tokenizer.save(str(folder / TOKENIZER_FILE))

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise texts; tokens beyond the limit are cut off, as the reference does.

        Args:
            texts: At least one; each with at least one token of its own.

        Raises:
            ValueError: There are no texts, or one is blank; the message has its index.
        """
        if not texts:
            raise ValueError("there are no texts to encode")
        rows = []
        for index, text in enumerate(texts):
            encoding = self._tokenizer.encode(text)
            if all(encoding.special_tokens_mask):
                raise ValueError(f"text {index} is blank; give it at least one word")
            rows.append(encoding.ids)
        longest = max(len(row) for row in rows)
        token_ids_BL = np.full((len(rows), longest), PAD_ID, dtype=np.int64)
        mask_BL = np.zeros((len(rows), longest), dtype=np.int64)
        for index, row in enumerate(rows):
            token_ids_BL[index, : len(row)] = row
            mask_BL[index, : len(row)] = 1
        return TokenBatch(token_ids_BL=token_ids_BL, mask_BL=mask_BL)

    def is_too_long(self, text: str) -> bool:
        """Whether a text has more tokens than the limit."""
        return bool(self._tokenizer.encode(text).overflowing)

    def drop_start(self, text: str) -> str:
        """The end of a text: as many of its tokens as the limit allows."""
        first = self._tokenizer.encode(text)
        starts = [
            start
            for piece in (first, *first.overflowing)
            for (start, _), is_special in zip(piece.offsets, piece.special_tokens_mask, strict=True)
            if not is_special
        ]
        limit = self.max_tokens - sum(first.special_tokens_mask)
        return text if len(starts) <= limit else text[starts[-limit] :]

    def _check_special_tokens(self) -> None:
        """PackageError if a caller's text could become padding or a separator."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            if not token.special or token.content == unknown:
                continue
            if token_id in self._tokenizer.encode(token.content, add_special_tokens=False).ids:
                raise PackageError(
                    f"the tokenizer takes the text {token.content!r} for a special token; add a "
                    "pre-tokenizer that splits it, and export the model again"
                )


def fill(name: str, templates: Sequence[str]) -> list[str]:
    """Put a class name into each template; ValueError if one has not exactly one `{}`."""
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"a template needs exactly one {{}}, unlike {template!r}")
    return [template.replace("{}", name) for template in templates]
