"""What each precision has to keep, in one table, and why.

The bundled student (trained) and a B/14 (random weights, with scales as training leaves them) were
measured by this gate on a CPU with AMX; `tests/model/parity/test_gate.py` plants the faults. What
quantised graphs may lose is where faults are still caught, not what was measured.
"""

from typing import Final

from model.graphs import DenseTask, Part, Precision
from model.manifest import ParityLimits

LIMITS: Final[dict[Precision, ParityLimits]] = {
    # The same sums in another order. Measured: 1.7e-5 of an output's scale at most, also on noise,
    # and 99.99 % of the pixels; six times that is no rounding any more.
    "fp32": ParityLimits(max_relative_diff=1e-4, min_mask_agreement=0.999),
    # 8 bits of mantissa. The share of pixels decides, and is what it was agreed to keep where it is
    # taken unasked; those that change lie where two classes are equally near. Measured: 99.57 % of
    # the student's. Cosines tell a fault from rounding: the student's are 0.9997 at worst, those of
    # twelve blocks of random weights, which let errors grow, 0.9948 and 0.9998 in the mean.
    "bf16": ParityLimits(
        max_length_error=0.05, min_cosine=0.99, min_mean_cosine=0.9995, min_mask_agreement=0.995
    ),
    # 11 bits of mantissa: an eighth of the error of bf16. By OpenVINO's hint the student kept a
    # cosine of 0.99995 at worst and 99.89 % of the pixels.
    "fp16": ParityLimits(
        max_length_error=0.01, min_cosine=0.999, min_mean_cosine=0.9999, min_mask_agreement=0.998
    ),
    # Only ever taken by name. Swapped outputs or items stay below these cosines, and a package
    # whose masks change more than one pixel in twenty is another model.
    "int8": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
    "int8_weights": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
}
# Of dense heads: relative depth, degrees between normals, and the same class as the model. Judged
# by what a map is used for, not yet by released heads: none could be measured here.
_DENSE: Final[dict[Precision, tuple[float, float, float]]] = {
    "fp32": (1e-4, 0.01, 0.999),
    "bf16": (0.02, 1.0, 0.99),
    "fp16": (0.005, 0.2, 0.995),
    "int8": (0.05, 3.0, 0.95),
    "int8_weights": (0.05, 3.0, 0.95),
}


def limits(part: Part, precision: Precision) -> ParityLimits:
    """What a graph, run in this precision, has to keep."""
    if part in {"vision", "text"}:
        return LIMITS[precision]
    depth_error, degrees, agreement = _DENSE[precision]
    dense: dict[DenseTask, ParityLimits] = {
        "depth": ParityLimits(max_depth_error=depth_error),
        "normals": ParityLimits(max_normals_degrees=degrees),
        "segmentation": ParityLimits(min_mask_agreement=agreement),
    }
    return next(its for task, its in dense.items() if task == part)
