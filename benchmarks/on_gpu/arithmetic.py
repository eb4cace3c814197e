"""Peak operations of a device and operations per image, for utilisation.

The peak is the best measured square matrix product, not a data sheet value. Operations per image
are counted on the real modules; a multiply-add counts as two.

Shapes: B batch.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.on_gpu.place import Place
from benchmarks.on_gpu.timing import timed

if TYPE_CHECKING:
    from transformers import Tipsv2Config


def torch_type(precision: str) -> Any:
    """Return the torch dtype of a precision."""
    import torch  # noqa: PLC0415 - the script reports a missing torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def gemm_peaks(place: Place, seconds: float) -> list[dict[str, Any]]:
    """Measure operations per second of square products of several sizes per precision."""
    import torch  # noqa: PLC0415 - as above

    rows = []
    for precision in place.gemm_precisions:
        for side in place.gemm_sides:
            left, right = (
                torch.randn(side, side, device=place.device, dtype=torch_type(precision))
                for _ in range(2)
            )
            out = torch.empty_like(left)

            def multiply(left: Any = left, right: Any = right, out: Any = out) -> None:
                torch.mm(left, right, out=out)
                if place.is_gpu:
                    torch.cuda.synchronize()

            timing = timed(multiply, seconds)
            rows.append(
                {
                    "precision": precision,
                    "side": side,
                    "tflops": 2 * side**3 / timing.median_s / 1e12,
                    "runs": timing.num_runs,
                }
            )
    return rows


def peak_of(gemm_rows: list[dict[str, Any]], precision: str) -> float | None:
    """Return the best operations per second of a precision; None if not measured."""
    found = [row["tflops"] * 1e12 for row in gemm_rows if row["precision"] == precision]
    return max(found, default=None)


def flops_per_image(config: "Tipsv2Config", side: int) -> int:
    """Count operations of all four vision outputs of one square image, with the value path."""
    return _flops(config.to_json_string(), side)


@cache
def _flops(text: str, side: int) -> int:
    import json  # noqa: PLC0415 - with the rest

    import torch  # noqa: PLC0415
    from transformers import Tipsv2Config, Tipsv2Model  # noqa: PLC0415

    from model.features import vision_features  # noqa: PLC0415
    from training.cost import Count, count_per_image, extend_in_depth  # noqa: PLC0415

    document = json.loads(text)

    def build(num_layers: int) -> Tipsv2Model:
        depth = {"num_hidden_layers": num_layers, "out_features": None, "out_indices": None}
        model = Tipsv2Model(
            Tipsv2Config(
                text_config={**document["text_config"], **depth},
                vision_config={**document["vision_config"], **depth},
            )
        )
        model.set_attn_implementation("sdpa")
        model.eval()
        return model

    def compute(model: Tipsv2Model, batch: int) -> torch.Tensor:
        features = vision_features(model, torch.empty(batch, 3, side, side))
        return features.patches_BND + features.values_BND

    def count_at(num_layers: int) -> Count:
        return count_per_image(lambda: build(num_layers), compute, trains=False)

    depth = document["vision_config"]["num_hidden_layers"]
    return extend_in_depth(count_at, depth).forward_flops
