"""How far an export may differ from its model: a table by part and precision."""

from typing import Final

from model.graphs import Part, Precision
from model.manifest import ParityLimits

# Swapped outputs or items have cosines below these; with more than one changed pixel in twenty,
# the masks are those of another model.
_INT8: Final = ParityLimits(
    max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
)
# Measured by this gate on a CPU with AMX: the bundled student (trained), and a B/14 (random weights
# at the scales of a trained model). The limits of quantised graphs still catch the faults of
# `tests/model/parity/test_gate.py`.
TOWERS: Final[dict[Precision, ParityLimits]] = {
    # Only the order of sums differs. Measured: at most 1.7e-5 of an output's scale, also on noise,
    # and 99.99 % of the pixels; six times that is more than rounding.
    "fp32": ParityLimits(max_relative_diff=1e-4, min_mask_agreement=0.999),
    # 8 bits of mantissa. The share of pixels decides, as bf16 is chosen with AMX; pixels that
    # change lie where two classes are equally near. Measured: the student keeps 99.57 %. Cosines
    # separate faults from rounding: at worst 0.9997 for the student; for twelve blocks of random
    # weights, which amplify errors, 0.9948, and 0.9998 in the mean.
    "bf16": ParityLimits(
        max_length_error=0.05, min_cosine=0.99, min_mean_cosine=0.9995, min_mask_agreement=0.995
    ),
    # 11 bits of mantissa: an eighth of the error of bf16. With OpenVINO's hint the student had a
    # cosine of 0.99995 at worst, and kept 99.89 % of the pixels.
    "fp16": ParityLimits(
        max_length_error=0.01, min_cosine=0.999, min_mean_cosine=0.9999, min_mask_agreement=0.998
    ),
    "int8": _INT8,
    "int8_weights": _INT8,
}
# A package that names int8 for CPUs, a network of convolutions. Two trunks of EfficientNet-Lite0
# with weights of 7 and 8 bits had cosines of 0.91 at worst and 0.984 and 0.988 in the mean, lengths
# 0.22 off at worst, and equal scores. 92.8 and 90.0 % of the pixels kept their class; with more
# exact weights (0.95, 0.993) it was still 92.3 %, as many pixels there lie between two classes.
NAMED_INT8: Final = ParityLimits(
    max_length_error=0.3, min_cosine=0.88, min_mean_cosine=0.98, min_mask_agreement=0.87
)
# Dense heads: relative error of depth, degrees between normals, share of pixels of the same class.
# Chosen for the use of such maps; no released heads could be measured here.
HEADS: Final[dict[Precision, tuple[float, float, float]]] = {
    "fp32": (1e-4, 0.01, 0.999),
    "bf16": (0.02, 1.0, 0.99),
    "fp16": (0.005, 0.2, 0.995),
    "int8": (0.05, 3.0, 0.95),
    "int8_weights": (0.05, 3.0, 0.95),
}


def limits(part: Part, precision: Precision, named: Precision | None = None) -> ParityLimits:
    """Return the limits of a graph in a precision; `named` is the manifest's `cpu_precision`."""
    if part == "vision" and precision == named == "int8":
        return NAMED_INT8
    if part in {"vision", "text"}:
        return TOWERS[precision]
    depth_error, degrees, agreement = HEADS[precision]
    heads: dict[Part, ParityLimits] = {
        "depth": ParityLimits(max_depth_error=depth_error),
        "normals": ParityLimits(max_normals_degrees=degrees),
        "segmentation": ParityLimits(min_mask_agreement=agreement),
    }
    return heads[part]
