"""What each precision has to keep, in one table, and why.

The numbers were chosen from what the bundled student, a B/14 with random weights and planted
faults measure; the README's parity table shows the first two.
"""

from typing import Final

from model.graphs import DenseTask, Part, Precision
from model.manifest import ParityLimits

LIMITS: Final[dict[Precision, ParityLimits]] = {
    # Another order of the same sums: 1e-5 of the output's scale was the most seen, so ten times
    # that is no rounding any more. It holds on noise as well.
    "fp32": ParityLimits(max_relative_diff=1e-4, min_mask_agreement=0.999),
    "bf16": ParityLimits(
        max_length_error=0.05, min_cosine=0.99, min_mean_cosine=0.999, min_mask_agreement=0.995
    ),
    "fp16": ParityLimits(
        max_length_error=0.01, min_cosine=0.999, min_mean_cosine=0.9999, min_mask_agreement=0.998
    ),
    "int8": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
    "int8_weights": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
}
# Of dense heads: relative depth, degrees between normals, and the same class as the model.
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
