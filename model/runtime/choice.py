"""What computes a package: as asked for, or the fastest that is exact on this machine, and why."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import Device

RuntimeName = Literal["onnx", "openvino", "tensorrt", "torch"]
# ONNX Runtime's execution providers.
Provider = Literal["cpu", "cuda", "tensorrt"]
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRequest:
    """What was asked for; "auto" leaves it to the machine and the package.

    Attributes:
        runtime: A `RuntimeName`, or "auto".
        precision: A `Precision`, or "auto".
        device: A `Device`, or "auto".
        provider: A `Provider`, or "auto"; for the runtime `onnx` only.
    """

    runtime: str = AUTO
    precision: str = AUTO
    device: str = AUTO
    provider: str = AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """What computes, nothing left open.

    Attributes:
        runtime: Key of `model.runtime.load.RUNTIMES`.
        precision: Of the arithmetic.
        device: Where it computes.
        provider: Of ONNX Runtime; None for other runtimes.
        reason: A sentence for the log and for `/v1/models`: why this, and why nothing faster.
    """

    runtime: RuntimeName
    precision: Precision
    device: Device
    provider: Provider | None = None
    reason: str


def choose_runtime(package: ModelPackage, request: RuntimeRequest) -> RuntimeChoice:
    """Fill in what was left to "auto".

    Args:
        package: Its manifest says which precisions were proven, on which runtime.
        request: What is not "auto" is taken as it is, or refused.

    Raises:
        ValueError: A name that is not known, or names that do not go together.
    """
    del package
    name = "onnx" if request.runtime == AUTO else request.runtime
    if name not in get_args(RuntimeName):
        raise ValueError(
            f"unknown runtime {name!r}; choose auto, {', '.join(sorted(get_args(RuntimeName)))}"
        )
    runtime: RuntimeName = name  # type: ignore[assignment]
    return RuntimeChoice(runtime=runtime, precision="fp32", device="cpu", reason="the default")
