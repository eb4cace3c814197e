"""Choose the backend that computes a package: as requested, or the fastest proven one."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, get_args

from model.graphs import Precision
from model.manifest import Manifest, ParityEntry
from model.package import ModelPackage, PackageError
from model.runtime.base import Device, MissingRuntimeError, UnusableRuntimeError
from model.runtime.loaded_graphs import proof, vision_file
from model.runtime.machine import (
    INSTALL,
    INSTALL_ONNX_GPU,
    INSTALL_TORCH_CUDA,
    Hardware,
    Libraries,
    Provider,
    RuntimeName,
    installed_libraries,
    this_hardware,
)

# The ways to compute a package, the fastest first, and what may be in the way of each.


@dataclass(frozen=True, slots=True)
class Way:
    """A runtime on a device, and what it can be told.

    Attributes:
        runtime: Its name.
        device: Where it computes.
        provider: Of ONNX Runtime.
        precisions: Those that it computes in, the fastest that may be exact enough first.
        unasked: Those of them that need not be named; all but fp32 must then be proven.
        is_named_only: Whether it is never taken unasked.
    """

    runtime: RuntimeName
    device: Device
    provider: Provider | None
    precisions: tuple[Precision, ...]
    unasked: tuple[Precision, ...] = ("fp32",)
    is_named_only: bool = False

    @property
    def label(self) -> str:
        """As a sentence calls it."""
        device = "the CPU" if self.device == "cpu" else "a GPU"
        through = {"cuda": " through CUDA", "tensorrt": " through TensorRT"}
        return f"{self.runtime} on {device}{through.get(self.provider or 'cpu', '')}"


# The fastest first. In float32 OpenVINO took 0.72 to 0.95 of ONNX Runtime's time for images, on a
# CPU with AMX, for the bundled student and for a B/14. A proof says nothing of ONNX Runtime on a
# GPU: it is measured on the CPU, where float16 is computed as float32.
WAYS: Final = (
    Way("tensorrt", "gpu", None, ("fp16", "bf16", "fp32", "int8"), ("fp16", "bf16", "fp32")),
    Way("onnx", "gpu", "cuda", ("fp32", "fp16", "bf16")),
    Way("torch", "gpu", None, ("bf16", "fp32", "fp16"), ("bf16", "fp32")),
    # It rounds float32 to TF32 and cannot be told not to, so it offers none.
    Way("onnx", "gpu", "tensorrt", ("fp16", "bf16", "int8"), is_named_only=True),
    Way("openvino", "cpu", None, ("bf16", "fp32", "int8", "int8_weights"), ("bf16", "fp32")),
    Way("onnx", "cpu", "cpu", ("fp32", "fp16", "int8", "int8_weights")),
    Way("torch", "cpu", None, ("fp32", "bf16")),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute with."""

    hardware: Hardware
    libraries: Libraries


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a way cannot be gone; the one that is met latest is the one worth telling.

    Attributes:
        depth: How many checks were passed before.
        text: Continues a sentence that names the way.
        error: What to raise where this was asked for.
    """

    depth: int
    text: str
    error: type[Exception] = UnusableRuntimeError


def find_obstacle(
    way: Way,
    precision: Precision,
    manifest: Manifest,
    machine: Machine,
) -> Obstacle | None:
    """What keeps this machine from computing the package so."""
    if way.device == "gpu" and not machine.hardware.gpus:
        return Obstacle(1, "there is no NVIDIA GPU that this process may use")
    missing = _missing_library(way, machine.libraries)
    if missing is not None:
        return Obstacle(2, f"it {missing}", MissingRuntimeError)
    if way.device == "cpu" and precision == "bf16" and "bf16" not in machine.hardware.cpu_features:
        return Obstacle(
            3, "this CPU does not compute in bf16 (no avx512_bf16 or amx_bf16), only imitates it"
        )
    file = vision_file(way.runtime, precision)
    if file not in manifest.files:
        text = f"model package {manifest.name!r} has no file {file!r}: export the model again"
        return Obstacle(4, text, PackageError)
    return None


def _missing_library(way: Way, libraries: Libraries) -> str | None:
    """What has to be installed for a way; None where nothing has."""
    if way.runtime == "onnx":
        if not libraries.onnx:
            return INSTALL["onnx"] if way.device == "cpu" else INSTALL_ONNX_GPU
        return None if way.provider in libraries.onnx else INSTALL_ONNX_GPU
    if way.runtime == "torch":
        if not libraries.torch:
            return INSTALL["torch"]
        return None if way.device in libraries.torch else INSTALL_TORCH_CUDA
    is_there = libraries.openvino if way.runtime == "openvino" else libraries.tensorrt
    return None if is_there else INSTALL[way.runtime]


# What computes a package: as asked for, or the fastest that is proven on this machine, and why.

AUTO: Final = "auto"
UNPROVEN: Final = 5  # deeper than any obstacle of the machine


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


KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "runtime": get_args(RuntimeName),
    "precision": get_args(Precision),
    "device": get_args(Device),
    "provider": get_args(Provider),
}


def choose_runtime(package: ModelPackage, request: RuntimeRequest) -> RuntimeChoice:
    """Fill in what was left to "auto", for this machine and what is installed on it.

    Args:
        package: Its manifest says which precisions were proven, on which runtime.
        request: What is not "auto" is taken as it is, or refused.

    Raises:
        UnusableRuntimeError: A name that is not known, names that do not go together, or what this
            machine cannot do.
        MissingRuntimeError: The library is not installed.
        PackageError: The package has no graph for it.
    """
    return choose(package.manifest, request, Machine(this_hardware(), installed_libraries()))


def choose(manifest: Manifest, request: RuntimeRequest, machine: Machine) -> RuntimeChoice:
    """As `choose_runtime`, for any machine; see there."""
    _check_names(request)
    candidates = list(_candidates(request))
    if not candidates:
        raise UnusableRuntimeError(_not_together(request))
    passed_over: list[tuple[Way, Precision, Obstacle]] = []
    for way, precision in candidates:
        obstacle = find_obstacle(way, precision, manifest, machine)
        entry = proof(manifest, way.runtime, precision)
        is_doubtful = entry is None and precision != "fp32" and request.precision == AUTO
        if obstacle is None and is_doubtful:
            obstacle = Obstacle(UNPROVEN, "it is not proven for this package")
        if obstacle is None:
            return RuntimeChoice(
                runtime=way.runtime,
                precision=precision,
                device=way.device,
                provider=way.provider,
                reason=_reason(request, way, precision, entry) + _told(passed_over),
            )
        passed_over.append((way, precision, obstacle))
    worst = max((obstacle for _, _, obstacle in passed_over), key=lambda found: found.depth)
    raise worst.error(
        f"nothing here can compute as asked for ({_asked(request)}).{_told(passed_over)}"
    )


def _check_names(request: RuntimeRequest) -> None:
    for field, known in KNOWN.items():
        name = getattr(request, field)
        if name != AUTO and name not in known:
            raise UnusableRuntimeError(
                f"unknown {field} {name!r}; choose {AUTO}, {', '.join(sorted(known))}"
            )


def _candidates(request: RuntimeRequest) -> Iterable[tuple[Way, Precision]]:
    """Every way and precision that fits what was asked for, the fastest first."""
    for way in WAYS:
        fits = (
            request.runtime in {AUTO, way.runtime}
            and request.device in {AUTO, way.device}
            and request.provider in {AUTO, way.provider}
        )
        if not fits or (way.is_named_only and request.provider == AUTO):
            continue
        for precision in way.precisions:
            if precision == request.precision or (
                request.precision == AUTO and precision in way.unasked
            ):
                yield way, precision


def _reason(
    request: RuntimeRequest, way: Way, precision: Precision, entry: ParityEntry | None
) -> str:
    """Why this one."""
    asked = _asked(request)
    why = f"as asked for ({asked})" if asked else "the fastest that is proven here"
    if precision == "fp32":
        return f"{way.label} in {precision}: {why}."
    if entry is None:
        return f"{way.label} in {precision}: {why}; how exact it is was not proven."
    found = [f"differs by at most {entry.max_abs_diff:.2g}"]
    if entry.min_cosine_patches is not None:
        found.append(f"cosine of patches at least {entry.min_cosine_patches:.5f}")
    if entry.mask_agreement is not None:
        found.append(f"masks agree in {100 * entry.mask_agreement:.2f} %")
    return f"{way.label} in {precision}: {why}; proven for this package ({', '.join(found)})."


def _asked(request: RuntimeRequest) -> str:
    """What was not left open."""
    given = {name: getattr(request, name) for name in KNOWN}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value != AUTO)


def _told(passed_over: Iterable[tuple[Way, Precision, Obstacle]]) -> str:
    """What was considered before, by what was in its way; empty where nothing was."""
    ways: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for way, precision, obstacle in passed_over:
        ways[obstacle.text][way.label].append(precision)
    said = []
    for text, labels in ways.items():
        names = [f"{label} ({', '.join(precisions)})" for label, precisions in labels.items()]
        said.append(f" Not {', '.join(names)}: {text}.")
    return "".join(said)


def _not_together(request: RuntimeRequest) -> str:
    """What cannot be asked for at once, and what can."""
    possible = []
    for way in WAYS:
        provider = f", provider {way.provider}" if way.provider else ""
        possible.append(f"{way.runtime} on {way.device}{provider}: {', '.join(way.precisions)}")
    return f"{_asked(request)} do not go together; these do: {'; '.join(possible)}"
