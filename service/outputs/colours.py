"""Colours of classes, and of one value from 0 to 1.

Both are tables of RGB, computed in OKLab at commit 220329c0 by `service/outputs/masks.py`
and `maps.py`, apart from the first eight classes, chosen by eye.
"""

from base64 import b64decode
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.winner_map import Labels

MAX_PALETTE_CLASSES: Final = 255
NUM_BRIGHT: Final = 8
# Distance in RGB between a colour and the mean of the image below: sky and light blue have 80.
LEAST_CONTRAST: Final = 150
# Rows and columns of the image of which the mean is taken, at most.
SAMPLE_SIDE: Final = 256
# Black for background; eight bright colours, for tints and outlines over images; then each colour
# as far as possible from the others, from dark to pale. The colour of a class depends on its number
# only, so that masks of one request match.
CLASSES: Final = (
    "AAAATML//7E9fueH/3ucxZv//+RcT+DQ/49r/5nMsoBMsgCZAP/msgAAsoD/AICyM8yAGmYzsgD/sszMsmaZM0yy"
    "suaA/0yyGmb//4BMTJmAgGYAmZmyAAD/gEzMsrJm/8z/srL/zEwA/+YAzBpmzEzM/7KZZoDmM8zMmcwAgACy/4D/"
    "5maAmUxMAGaAgJkz5uayAP+ZAMwAZmaZmRpmTIAzzJmAzOb/Zub/gICA5gCZ/0wAzIDMTJnMTGbMgLKZM7JMGuay"
    "mUyZTOZMAICAmYDMgJn/mWbmsgDMsv9mALKygEz/ZmZm5pkasmZmmcyZzEz/gEwa/wDM5rL/TMz//4CZ5mbmzLLM"
    "5gAA/8yAmebMgIBMZhrMAEzmzMwzmbIaAJn/spkamf+y/8zMZkyZgLLMZoCysuYAmZmAzJn/smYAgDOAzMz/zExm"
    "/wCAAGayzICZzMyAmTOyAIDmzEyZsgBMzBqyTLKAzLIAsrKZsjOAgP//zBrmgBrm/8wAmcz/zAAz5rJmmTMA/+aA"
    "AIAAzJmyTADm5kxM/7LMskyysmbMmWZMgLL/Zmb/mYAA5oAa5jPmTGZMmTPmskzmM5lMmWaysoCATEzmmWaAgEyA"
    "/2Zm/5mAmcxm/0yAgGbMzGZMZuaA5oCyskwz5oCA5may5mYasoCysmb//4DM/5lMAJmy5pnmmTNM/0zmspnmzIBm"
    "5jNmMzP/TGYAAObmmYCZZsxMgJlmTDPMmQCZTIBmgLJm5syyTGaA/5n/5oDmgMzMTICZmQDMgID/5pmZ/wAAZjOy"
    "skxmspmZZsyZ5kyZgDOy5rKygJnMmYBm5kzMzJlMALIA/2bMZpmZ5szmmTOAmUwamQD/sjNMZjPmzGYAsubmAP9m"
    "/2b/zIAATIDMgExMzOZMZrIA5gD/zGaAZpnmzGaysjMATLLMAIBMzGbmzOaZsplm5plmgP+A/2aZzLKAzACA5kwA"
    "M2Zm5gDMmUzMZmYzgOaymbKymf8z5ubmADPmTID/M2aZZkzM5kz/mWYa"
)
# From pale yellow for 0 to dark violet for 1; equal steps look equally large.
SCALE: Final = (
    "/fcg/fUa/vQS//IG//EI/+8e/+4p/+ww/+o2/+k5/+c9/+Y//+RB/+NC/+JD/+BE/99E/91F/9xF/9pF/9lE/9dE"
    "/9ZE/9VD/9ND/9JC/9BB/89A/80//8w//8o+/8k9/8g7/8Y6/8U5/8M4/8I3/8A1/780/70z/7wx/7ow/7ku/7ct"
    "/7Yr/7Qq/7Mo/7Em/7Al/64j/60h/6sf/6kd/6gb/6YZ/6UW/6MU/6ER/6AO/54L/50H/5sD/5kA/5gA/5YA/pUA"
    "/pMA/pIA/pAA/Y4A/Y0A/YsA/YoA/YgA/IYA/IUA/IMA/IEA/IAA/H4A+3wA+3oA+3kA+3cA+3UA+3MA+nEA+m8A"
    "+m0A+msA+mkA+mcA+mUC+WQI+GIN+GES918W9l4Z9Vwc9Fsf9Fkh81gj8lYm8VUo8FQq71Is71Et7k8v7U4x7Ewy"
    "60s06ko26Ug36Ec450Y65kQ75UM95EE+40A/4j9A4T1C4DxD3ztE3jlF3DhG2zdH2jVI2TRJ2DNK1zFL1jBM1S9N"
    "0y1O0ixP0StQ0ClRzyhSzSdTzCVUyyRVyiNVyCFWxyBXxh5YxR1ZwxxawhpawRlbvxdcvhZdvRRduxNeuhFfuRBf"
    "tw5gtgxhtAphswhisgZjsARjrwNkrgFlrABlqgBmqQBmpwBnpQBnpABoogBooABpnwBpnQBpmwBqmgBqmABrlwBr"
    "lQBrkwBrkgBskABsjgBsjQBtiwBtiQBtiABthgBthQBtgwBugQBugABufgBufABuewBueQBueABudgBudABucwBu"
    "cQBucABubgBubABuawBuaQBuaABtZgBtZABtYwBtYQBtYABsXgBsXQBsWwBsWQBrWABrVgBrVQBqUwBqUgBpUABp"
    "TwBoTQBoTABoSgBnSQBnRwBmRgBlRABlQwBkQQBkQABjPwBiPQBiPABhOgBgOQBgNwBfNgBeNQBeMwBdMgBcMQBb"
    "LwBaLgBZLQBZKwBYKgBXKQBWJwBVJgBUJQBTJABSIgBRIQBQIABPHwBO"
)


def _table(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(b64decode(text), np.uint8).reshape(-1, 3)


PALETTE: Final = _table(CLASSES)
COLOUR_SCALE: Final = _table(SCALE)


def levels_between(values: NDArray[np.float32], first: float, last: float) -> NDArray[np.uint8]:
    """Levels of values, such as indices of `COLOUR_SCALE`: 0 for `first` to 255 for `last`."""
    factor = np.float32(255 / (last - first) if first != last else 0)
    levels: NDArray[np.float32] = np.rint((values - np.float32(first)) * factor)
    return levels.astype(np.uint8)


def palette_index(labels_HW: Labels) -> NDArray[np.uint8]:
    """The index of each label's colour; colours repeat after 255 classes."""
    if labels_HW.dtype == np.uint8:
        return labels_HW.astype(np.uint8, copy=False)
    repeated_HW = (labels_HW - 1) % MAX_PALETTE_CLASSES + 1
    return np.where(labels_HW, repeated_HW, 0).astype(np.uint8)


def contrasting(
    palette_K3: NDArray[np.uint8], labels_HW: Labels, pixels_HW3: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """A palette in which classes differ from the image below them.

    A class whose colour is close to the mean of its pixels, or is taken by a class before it,
    gets the bright colour that is farthest from that mean and not taken. Where more classes
    than bright colours are shown, all keep theirs. The Python client draws by the same rules.

    Args:
        palette_K3: RGB of each label from 0, for the background.
        labels_HW: The label map.
        pixels_HW3: The image, RGB.
    """
    step = -(-max(labels_HW.shape) // SAMPLE_SIDE)
    label_N = palette_index(labels_HW[::step, ::step]).ravel()
    pixel_N3 = pixels_HW3[::step, ::step].reshape(-1, 3)
    chosen_K3, bright_C3 = palette_K3.copy(), PALETTE[1 : NUM_BRIGHT + 1].astype(np.float64)
    shown = [label for label in np.unique(label_N).tolist() if label]
    if len(shown) > NUM_BRIGHT:
        return chosen_K3
    is_free_C = np.ones(NUM_BRIGHT, np.bool_)
    for label in shown:
        mean_3 = pixel_N3[label_N == label].mean(axis=0)
        is_own_C = (bright_C3 == palette_K3[label]).all(axis=1)
        is_taken = bool((is_own_C & ~is_free_C).any())
        if is_taken or np.linalg.norm(palette_K3[label] - mean_3) < LEAST_CONTRAST:
            contrast_C = np.linalg.norm(bright_C3 - mean_3, axis=1)
            best = int(np.where(is_free_C, contrast_C, -1).argmax())
            chosen_K3[label] = PALETTE[best + 1]
            is_own_C = np.arange(NUM_BRIGHT) == best
        is_free_C &= ~is_own_C
    return chosen_K3


def class_color(label: int) -> str:
    """Colour of a class as `#rrggbb`; colours repeat after 255 classes."""
    return "#" + bytes(PALETTE[(label - 1) % MAX_PALETTE_CLASSES + 1]).hex()
