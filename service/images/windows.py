"""Windows over an image: squares that overlap, the last of each row and column at its end.

Source: google-deepmind/tips, zero-shot segmentation notebook: windows of 448 pixels, 336 apart, on
images whose short side is 448.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Squares of `side` pixels, `stride` pixels apart."""

    side: int
    stride: int

    @classmethod
    def of(cls, side: int) -> Self:
        """Windows that overlap by a quarter."""
        return cls(side=side, stride=max(1, side * 3 // 4))

    def corners(self, size_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Top and left of every window, row by row; at least one.

        Args:
            size_hw: Height and width of the image, each at least the side of a window.

        Raises:
            ValueError: A window does not fit into the image.
        """
        height, width = size_hw
        return [(top, left) for top in self._starts(height) for left in self._starts(width)]

    def _starts(self, length: int) -> list[int]:
        if length < self.side:
            raise ValueError(f"a window of {self.side} pixels does not fit into {length}")
        count = 1 + -(-(length - self.side) // self.stride)
        return [min(i * self.stride, length - self.side) for i in range(count)]
