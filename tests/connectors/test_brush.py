"""Masks in the format of Label Studio's brush."""

import numpy as np
import pytest

from connectors.brush import pack_mask


def unpack(packed: list[int]) -> list[int]:
    """The values, read as the format's authors do: any width, runs and single values."""
    bits, place = "".join(f"{byte:08b}" for byte in packed), 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    num_values, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num_values:
        is_run, length = read(1), 1 + read(sizes[read(2)])
        values += [read(width)] * length if is_run else [read(width) for _ in range(length)]
    return values


@pytest.mark.parametrize("size", [(3, 5), (400, 400)])
def test_a_mask_is_read_back(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.bool_)
    mask[1:2, 2:] = True
    # A run that is longer than the format allows.
    mask[size[0] // 2 :] = size[0] > 100
    assert unpack(pack_mask(mask)) == np.repeat(255 * mask.ravel(), 4).tolist()
