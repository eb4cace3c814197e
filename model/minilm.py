"""The MiniLM sentence encoder in plain torch, so that a package of it needs no model library.

Shapes: B batch, L tokens, D width, A heads.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON: Final = 1e-12


class MiniLmSize(NamedTuple):
    """Sizes of the network.

    Attributes:
        vocabulary: Rows of the token table.
        positions: Largest number of tokens.
        width: D.
        depth: Number of layers.
        heads: A.
        hidden: Width inside the feed-forward layers.
    """

    vocabulary: int
    positions: int
    width: int = 384
    depth: int = 6
    heads: int = 12
    hidden: int = 1536


class _Layer(nn.Module):
    """A BERT layer: attention and feed-forward, each followed by a LayerNorm."""

    def __init__(self, size: MiniLmSize) -> None:
        super().__init__()
        self.heads, self.head_width = size.heads, size.width // size.heads
        self.query, self.key, self.value, self.output = (
            nn.Linear(size.width, size.width) for _ in range(4)
        )
        self.up, self.down = nn.Linear(size.width, size.hidden), nn.Linear(size.hidden, size.width)
        self.norm1 = nn.LayerNorm(size.width, eps=_EPSILON)
        self.norm2 = nn.LayerNorm(size.width, eps=_EPSILON)

    def _split(self, x_BLD: Tensor) -> Tensor:
        split_BLAd = x_BLD.unflatten(2, (self.heads, self.head_width))
        heads_BALd: Tensor = split_BLAd.transpose(1, 2)
        return heads_BALd

    def forward(self, x_BLD: Tensor, penalty_B11L: Tensor) -> Tensor:
        query, key, value = (
            self._split(layer(x_BLD)) for layer in (self.query, self.key, self.value)
        )
        score_BALL = query @ key.transpose(2, 3) * self.head_width**-0.5 + penalty_B11L
        mixed_BLD = (score_BALL.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        x_BLD = self.norm1(x_BLD + self.output(mixed_BLD))
        hidden = F.gelu(self.up(x_BLD))
        normed_BLD: Tensor = self.norm2(x_BLD + self.down(hidden))
        return normed_BLD


class MiniLm(nn.Module):
    """Tokens to a sentence embedding: the mean of the last layer over the tokens of a text."""

    def __init__(self, size: MiniLmSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Parameter(torch.zeros(size.positions, size.width))
        self.norm = nn.LayerNorm(size.width, eps=_EPSILON)
        self.layers = nn.ModuleList([_Layer(size) for _ in range(size.depth)])

    def forward(self, token_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Embed texts.

        Args:
            token_ids_BL: int64, padded on the right.
            mask_BL: 1 for tokens, 0 for padding.

        Returns:
            float32 [B, D], of unit length; zeros for a row without tokens.
        """
        weight_BL1 = mask_BL.to(torch.float32)[..., None]
        tokens_BLD = self.tokens(token_ids_BL)
        x_BLD = self.norm(tokens_BLD + self.positions[: token_ids_BL.shape[1]])
        penalty_B11L = ((1 - weight_BL1) * -1e4).transpose(1, 2)[:, None]
        for layer in self.layers:
            x_BLD = layer(x_BLD, penalty_B11L)
        total_BD = (x_BLD * weight_BL1).sum(dim=1)
        return F.normalize(total_BD, dim=-1)
