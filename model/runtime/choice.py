"""Choose the backend that computes a package: as requested, or the fastest proven one."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, get_args

from model.graphs import Precision
from model.manifest import RECORDED_FILE, Manifest, ParityEntry
from model.package import ModelPackage, PackageError
from model.runtime.base import Device, MissingRuntimeError, UnusableRuntimeError
from model.runtime.loaded_graphs import (
    failures,
    has_failed_tower,
    loaded_file,
    loaded_graphs,
    proof,
)
from model.runtime.machine import (
    INSTALL,
    INSTALL_ONNX_GPU,
    INSTALL_TORCH_CUDA,
    CpuFeature,
    Hardware,
    InstalledLibraries,
    RuntimeName,
    installed_libraries,
    this_hardware,
)

AUTO: Final = "auto"
UNPROVEN: Final = 5  # deeper than every reason of the machine
# With either, ONNX Runtime's convolutions are faster in int8 than in float32.
INT8_FEATURES: Final[frozenset[CpuFeature]] = frozenset(("vnni", "avx2"))
# What measurements of this machine belong to.
Place = tuple[RuntimeName, Device]
KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "runtime": get_args(RuntimeName),
    "precision": get_args(Precision),
    "device": get_args(Device),
}


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime on a device.

    Attributes:
        precisions: Supported precisions, in order of preference.
        auto_precisions: Those chosen for "auto"; all but fp32 must be proven for the package, or
            are checked when it is loaded.
    """

    runtime: RuntimeName
    device: Device
    precisions: tuple[Precision, ...]
    auto_precisions: tuple[Precision, ...] = ("fp32",)

    @property
    def place(self) -> Place:
        """What measurements of this machine belong to."""
        return self.runtime, self.device

    @property
    def label(self) -> str:
        """Name for sentences, such as "onnx on a GPU"."""
        return f"{self.runtime} on {'the CPU' if self.device == 'cpu' else 'a GPU'}"


# Fastest first. In float32 OpenVINO took 0.72 to 0.95 of ONNX Runtime's time for images, on a CPU
# with AMX, for the bundled student and for a B/14. On a GPU fp16 is before bf16: as fast, with an
# eighth of the rounding.
BACKENDS: Final = (
    Backend("tensorrt", "gpu", ("fp16", "bf16", "fp32", "int8"), ("fp16", "bf16", "fp32")),
    Backend("onnx", "gpu", ("fp16", "bf16", "fp32"), ("fp16", "bf16", "fp32")),
    Backend("torch", "gpu", ("bf16", "fp32", "fp16"), ("bf16", "fp32")),
    Backend("openvino", "cpu", ("bf16", "fp32", "int8", "int8_weights"), ("bf16", "fp32")),
    Backend("onnx", "cpu", ("fp32", "fp16", "int8", "int8_weights")),
    Backend("torch", "cpu", ("fp32", "bf16")),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and libraries of a machine."""

    hardware: Hardware
    libraries: InstalledLibraries


@dataclass(frozen=True, slots=True)
class UnavailableReason:
    """Why a backend cannot compute a package: the end of a sentence that names it, and its error.

    `depth` is the number of checks that passed before: the deepest reason is reported, as that
    backend is the nearest to working.
    """

    depth: int
    text: str
    error: type[Exception] = UnusableRuntimeError


def unavailable_reason(
    backend: Backend, precision: Precision, manifest: Manifest, machine: Machine
) -> UnavailableReason | None:
    """Check a backend on a machine; returns None if it can compute the package."""
    if backend.device == "gpu" and not machine.hardware.has_gpu:
        return UnavailableReason(1, "there is no NVIDIA GPU that this process may use")
    missing = _missing_library(backend, machine.libraries)
    if missing is not None:
        return UnavailableReason(2, f"it {missing}", MissingRuntimeError)
    if (
        backend.device == "cpu"
        and precision == "bf16"
        and "bf16" not in machine.hardware.cpu_features
    ):
        return UnavailableReason(
            3, "this CPU does not compute in bf16 (no avx512_bf16 or amx_bf16), only emulates it"
        )
    file = loaded_file("vision", backend.runtime, precision)
    if file not in manifest.files:
        text = f"model package {manifest.name!r} has no file {file!r}: export the model again"
        return UnavailableReason(4, text, PackageError)
    return None


def _missing_library(backend: Backend, libraries: InstalledLibraries) -> str | None:
    """What to install for a backend; None if nothing is missing."""
    if backend.runtime == "onnx":
        if not libraries.onnx:
            return INSTALL["onnx"] if backend.device == "cpu" else INSTALL_ONNX_GPU
        return None if backend.device in libraries.onnx else INSTALL_ONNX_GPU
    if backend.runtime == "torch":
        if not libraries.torch:
            return INSTALL["torch"]
        return None if backend.device in libraries.torch else INSTALL_TORCH_CUDA
    is_there = libraries.openvino if backend.runtime == "openvino" else libraries.tensorrt
    return None if is_there else INSTALL[backend.runtime]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRequest:
    """Requested backend by names; "auto" leaves a field to the machine and the package."""

    runtime: str = AUTO
    precision: str = AUTO
    device: str = AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """The chosen backend and precision, and why this one, for the log and `/v1/models`."""

    runtime: RuntimeName
    precision: Precision
    device: Device
    reason: str

    @property
    def place(self) -> Place:
        """What measurements of this machine belong to."""
        return self.runtime, self.device


@dataclass(frozen=True, slots=True)
class Checks:
    """Measurements of this process, against the reference outputs that a package keeps.

    Parity entries of a package were measured on CPUs, so they say nothing of a GPU.

    Attributes:
        are_possible: Whether what is chosen will be measured before it is used.
        entries: Measurements of all loaded graphs, by place and precision.
        broken: Runtimes that could not be loaded or run here, with the reason; they are not chosen.
    """

    are_possible: bool = False
    entries: Mapping[tuple[Place, Precision], Sequence[ParityEntry]] = field(default_factory=dict)
    broken: Mapping[RuntimeName, str] = field(default_factory=dict)

    def known(self, manifest: Manifest, place: Place) -> Manifest:
        """The manifest with the parity entries that hold for a place."""
        here = [e for (where, _), found in self.entries.items() if where == place for e in found]
        measured = {(entry.file, entry.precision) for entry in here}
        kept = [
            entry
            for entry in manifest.parity
            if (place[1] == "cpu" or not entry.passed)
            and (entry.file, entry.precision) not in measured
        ]
        return manifest.model_copy(update={"parity": [*here, *kept]})

    def with_entries(self, choice: RuntimeChoice, found: Sequence[ParityEntry]) -> "Checks":
        """Add the measurements of a choice."""
        return replace(self, entries={**self.entries, (choice.place, choice.precision): found})

    def without(self, runtime: RuntimeName, reason: str) -> "Checks":
        """Add a broken runtime."""
        return replace(self, broken={**self.broken, runtime: reason})

    def are_due(self, manifest: Manifest, choice: RuntimeChoice) -> bool:
        """Whether a choice must be measured before it is used."""
        if not self.are_possible or (choice.place, choice.precision) in self.entries:
            return False
        is_proven = choice.precision == "fp32" or proof(manifest, choice.runtime, choice.precision)
        return choice.device == "gpu" or not is_proven


UNCHECKED: Final = Checks()


def choose_runtime(
    package: ModelPackage, request: RuntimeRequest, checks: Checks = UNCHECKED
) -> RuntimeChoice:
    """Choose the fastest proven backend of this machine that fits a request.

    Args:
        package: Its manifest lists the proven precisions of each runtime on CPUs.
        request: Fields other than "auto" are used as given, or refused.
        checks: What was measured before, and whether the choice will be.

    Raises:
        UnusableRuntimeError: A name is unknown, or names or machine do not fit together.
        MissingRuntimeError: The library is not installed.
        PackageError: The package has no graph for it.
    """
    machine = Machine(this_hardware(), installed_libraries())
    return choose(package.manifest, request, machine, checks)


def choose(
    manifest: Manifest, request: RuntimeRequest, machine: Machine, checks: Checks = UNCHECKED
) -> RuntimeChoice:
    """Choose as `choose_runtime` does, for any machine."""
    _check_names(request)
    candidates = list(_candidates(request, manifest))
    if not candidates:
        raise UnusableRuntimeError(_incompatible(request))
    rejected: list[tuple[Backend, Precision, UnavailableReason]] = []
    for backend, precision in candidates:
        known = checks.known(manifest, backend.place)
        reason = unavailable_reason(backend, precision, known, machine)
        if backend.runtime in checks.broken:
            reason = UnavailableReason(UNPROVEN, checks.broken[backend.runtime])
        if reason is None and request.precision == AUTO:
            will_check = checks.are_possible
            reason = _doubt(known, backend, precision, machine, will_check=will_check)
        if reason is None:
            return RuntimeChoice(
                runtime=backend.runtime,
                precision=precision,
                device=backend.device,
                reason=_reason(request, backend, precision, known)
                + _failed(known, backend, precision)
                + _rejections(rejected),
            )
        rejected.append((backend, precision, reason))
    worst = max((reason for _, _, reason in rejected), key=lambda found: found.depth)
    raise worst.error(
        f"no backend of this machine can compute as requested ({_requested(request)})."
        f"{_rejections(rejected)}"
    )


def _check_names(request: RuntimeRequest) -> None:
    for name_of, known in KNOWN.items():
        name = getattr(request, name_of)
        if name != AUTO and name not in known:
            raise UnusableRuntimeError(
                f"unknown {name_of} {name!r}; choose {AUTO}, {', '.join(sorted(known))}"
            )


def _candidates(request: RuntimeRequest, manifest: Manifest) -> Iterable[tuple[Backend, Precision]]:
    """Backends and precisions that fit the request, the fastest first."""
    named = manifest.cpu_runtime

    def rank(candidate: tuple[Backend, Precision]) -> int:
        backend, precision = candidate
        if backend.device == "gpu":
            return 0
        if _is_named(manifest, backend, precision):
            return 1
        is_after_named = precision == "fp32" and named not in {None, backend.runtime}
        return 3 if is_after_named else 2

    return sorted(_fitting(request, manifest), key=rank)


def _is_named(manifest: Manifest, backend: Backend, precision: Precision) -> bool:
    """Whether the package names this precision for CPUs, and has its graph."""
    return (
        backend.device == "cpu"
        and (backend.runtime, precision) == (manifest.cpu_runtime, manifest.cpu_precision)
        and loaded_file("vision", backend.runtime, precision) in manifest.files
    )


def _fitting(request: RuntimeRequest, manifest: Manifest) -> Iterator[tuple[Backend, Precision]]:
    for backend in BACKENDS:
        if request.runtime not in {AUTO, backend.runtime}:
            continue
        if request.device not in {AUTO, backend.device}:
            continue
        for precision in backend.precisions:
            is_automatic = precision in backend.auto_precisions
            is_automatic = is_automatic or _is_named(manifest, backend, precision)
            if precision == request.precision or (request.precision == AUTO and is_automatic):
                yield backend, precision


def _reason(
    request: RuntimeRequest, backend: Backend, precision: Precision, known: Manifest
) -> str:
    entry = proof(known, backend.runtime, precision)
    requested = _requested(request)
    why = f"as requested ({requested})" if requested else "the fastest that is proven here"
    if precision == "fp32":
        return f"{backend.label} in {precision}: {why}."
    if entry is None:
        return f"{backend.label} in {precision}: {why}, without a proof for this package."
    found = [f"differs by at most {entry.max_abs_diff:.2g}"]
    if entry.min_cosine_patches is not None:
        found.append(f"cosine of patches at least {entry.min_cosine_patches:.5f}")
    if entry.mask_agreement is not None:
        found.append(f"masks agree in {100 * entry.mask_agreement:.2f} %")
    return f"{backend.label} in {precision}: {why}; proven for this package ({', '.join(found)})."


def _doubt(
    known: Manifest, backend: Backend, precision: Precision, machine: Machine, *, will_check: bool
) -> UnavailableReason | None:
    """Why a precision is not chosen by default: what failed, with the numbers; None if it is."""
    if precision == "int8" and INT8_FEATURES.isdisjoint(machine.hardware.cpu_features):
        text = "this CPU has neither VNNI nor AVX2, with which 8 bits are faster"
        return UnavailableReason(UNPROVEN, text)
    if (
        precision == "bf16"
        and backend.device == "cpu"
        and "fast_bf16" not in machine.hardware.cpu_features
    ):
        # An Intel Xeon with AVX-512 alone took 1.65 times the time of float32 for the student, an
        # AMD EPYC 0.59 times.
        text = "this CPU has no AMX and is not from AMD, so bf16 would be slower than fp32"
        return UnavailableReason(UNPROVEN, text)
    if has_failed_tower(known, backend.runtime, precision):
        failed = _failed(known, backend, precision).strip().removesuffix(".")
        return UnavailableReason(UNPROVEN, failed[:1].lower() + failed[1:])
    if precision == "fp32" or will_check or proof(known, backend.runtime, precision) is not None:
        return None
    if backend.device == "gpu":
        has_outputs = RECORDED_FILE in known.files
        why = "" if has_outputs else ": the package has no reference outputs, export it again"
        return UnavailableReason(UNPROVEN, f"it is not checked on this GPU{why}")
    return UnavailableReason(UNPROVEN, "it is not proven for this package")


def _failed(manifest: Manifest, backend: Backend, precision: Precision) -> str:
    """Sentences on graphs that failed their proof in this precision; empty if there are none."""
    used = loaded_graphs(manifest, backend.runtime, precision)
    unproven = manifest.model_copy(update={"parity": []})
    sentences = []
    for graph in loaded_graphs(unproven, backend.runtime, precision):
        found = "; ".join(failures(manifest, backend.runtime, graph.file, graph.precision))
        if found:
            instead = "" if graph in used else ", and is computed in fp32"
            part = graph.part.capitalize()
            sentences.append(f" {part} failed its proof in {graph.precision} ({found}){instead}.")
    return "".join(sentences)


def _requested(request: RuntimeRequest) -> str:
    given = {name: getattr(request, name) for name in KNOWN}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value != AUTO)


def _rejections(rejected: Iterable[tuple[Backend, Precision, UnavailableReason]]) -> str:
    """Sentences on rejected backends, grouped by reason; empty if there are none."""
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for backend, precision, reason in rejected:
        by_reason[reason.text][backend.label].append(precision)
    sentences = []
    for text, labels in by_reason.items():
        names = [f"{label} ({', '.join(precisions)})" for label, precisions in labels.items()]
        sentences.append(f" Not {', '.join(names)}: {text}.")
    return "".join(sentences)


def _incompatible(request: RuntimeRequest) -> str:
    possible = [f"{b.runtime} on {b.device}: {', '.join(b.precisions)}" for b in BACKENDS]
    return f"{_requested(request)} cannot be combined; possible are {'; '.join(possible)}"
