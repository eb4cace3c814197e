"""The runtime is the fastest that is proven and usable, or the requested one."""

from itertools import product
from typing import Any, get_args

import pytest

from model.graphs import TEXT_FILE, VISION_FILE, Precision, graph_file
from model.manifest import Manifest, ParityEntry, ParityLimits
from model.package import PackageError
from model.runtime.base import MissingRuntimeError, UnusableRuntimeError
from model.runtime.choice import Checks, Machine, RuntimeRequest, choose
from model.runtime.loaded_graphs import loaded_file
from model.runtime.machine import Hardware, InstalledLibraries, RuntimeName
from tests.model.runtime.conftest import make_manifest

PLAIN = Hardware()
BF16 = Hardware(cpu_features=frozenset({"bf16", "fast_bf16"}))
SLOW_BF16 = Hardware(cpu_features=frozenset({"bf16"}))
AVX2 = Hardware(cpu_features=frozenset({"avx2"}))
VNNI = Hardware(cpu_features=frozenset({"bf16", "fast_bf16", "vnni"}))
H100 = Hardware(cpu_features=frozenset({"bf16", "fast_bf16"}), has_gpu=True)
CPU_LIBRARIES = InstalledLibraries(onnx=frozenset({"cpu"}), openvino=True)
ALL_LIBRARIES = InstalledLibraries(
    onnx=frozenset({"cpu", "gpu"}), openvino=True, tensorrt=True, torch=frozenset({"cpu", "gpu"})
)
FILES = dict.fromkeys((VISION_FILE, TEXT_FILE, "model.safetensors"), 1)
ONLY_TORCH = {"model.safetensors": 1}
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ALL_GRAPHS = FILES | {graph_file("vision", precision): 1 for precision in PRECISIONS}


def proven(runtime: RuntimeName, precision: Precision) -> ParityEntry:
    return ParityEntry(
        file=loaded_file("vision", runtime, precision),
        runtime=runtime,
        precision=precision,
        reference="torch",
        sizes=[],
        max_abs_diff=0.01,
        min_cosine_patches=0.9995,
        mask_agreement=0.9971,
        limits=ParityLimits(min_mask_agreement=0.995),
    )


PROOFS = (
    proven("openvino", "bf16"),
    proven("tensorrt", "fp16"),
    proven("torch", "bf16"),
    proven("onnx", "fp16"),
)
PLAIN_PACKAGE = make_manifest(files=FILES)
BF16_PROVEN = make_manifest(PROOFS[0], files=FILES)


def found(
    package: Manifest, hardware: Hardware, libraries: InstalledLibraries, **asked: Any
) -> str:
    choice = choose(package, RuntimeRequest(**asked), Machine(hardware, libraries))
    return f"{choice.runtime} {choice.precision} {choice.device}"


ONNX_CPU = InstalledLibraries(onnx=frozenset({"cpu"}))
ONNX_CUDA = InstalledLibraries(onnx=frozenset({"cpu", "gpu"}), openvino=True)
OPENVINO = InstalledLibraries(openvino=True)
TORCH_CPU = InstalledLibraries(torch=frozenset({"cpu"}))
TORCH_GPU = InstalledLibraries(onnx=frozenset({"cpu"}), torch=frozenset({"cpu", "gpu"}))
INT8_PROVEN = make_manifest(
    proven("onnx", "int8"), PROOFS[0], files=ALL_GRAPHS, cpu_runtime="onnx", cpu_precision="int8"
)


@pytest.mark.parametrize(
    ("package", "hardware", "libraries", "expected"),
    [
        (BF16_PROVEN, BF16, ALL_LIBRARIES, "openvino bf16 cpu"),
        (PLAIN_PACKAGE, BF16, CPU_LIBRARIES, "openvino fp32 cpu"),
        (BF16_PROVEN, PLAIN, CPU_LIBRARIES, "openvino fp32 cpu"),
        (BF16_PROVEN, BF16, ONNX_CPU, "onnx fp32 cpu"),
        (make_manifest(files=ONLY_TORCH), BF16, ALL_LIBRARIES, "torch fp32 cpu"),
        (PLAIN_PACKAGE, H100, ALL_LIBRARIES, "tensorrt fp32 gpu"),
        # What a package was proven with ran on a CPU.
        (make_manifest(*PROOFS, files=ALL_GRAPHS), H100, ALL_LIBRARIES, "tensorrt fp32 gpu"),
        (make_manifest(PROOFS[3], files=ALL_GRAPHS), H100, ONNX_CUDA, "onnx fp32 gpu"),
        (make_manifest(PROOFS[2], files=FILES), H100, TORCH_GPU, "torch fp32 gpu"),
        (BF16_PROVEN, H100, CPU_LIBRARIES, "openvino bf16 cpu"),
    ],
)
def test_auto_is_the_fastest_that_is_proven(
    package: Manifest, hardware: Hardware, libraries: InstalledLibraries, expected: str
) -> None:
    assert found(package, hardware, libraries) == expected


@pytest.mark.parametrize(
    ("package", "update", "hardware", "libraries", "asked", "expected"),
    [
        # Its runtime for float32 on CPUs.
        (PLAIN_PACKAGE, {"cpu_runtime": "onnx"}, BF16, CPU_LIBRARIES, {}, "onnx fp32 cpu"),
        (BF16_PROVEN, {"cpu_runtime": "onnx"}, BF16, CPU_LIBRARIES, {}, "openvino bf16 cpu"),
        (PLAIN_PACKAGE, {"cpu_runtime": "onnx"}, BF16, OPENVINO, {}, "openvino fp32 cpu"),
        # Its precision, for CPUs that gain by it.
        (INT8_PROVEN, {}, VNNI, ALL_LIBRARIES, {}, "onnx int8 cpu"),
        (INT8_PROVEN, {}, AVX2, ALL_LIBRARIES, {}, "onnx int8 cpu"),
        (INT8_PROVEN, {}, PLAIN, ALL_LIBRARIES, {}, "onnx fp32 cpu"),
        (INT8_PROVEN, {}, H100, ALL_LIBRARIES, {}, "tensorrt fp32 gpu"),
        (INT8_PROVEN, {}, VNNI, ALL_LIBRARIES, {"precision": "fp32"}, "onnx fp32 cpu"),
        (INT8_PROVEN, {}, VNNI, ALL_LIBRARIES, {"runtime": "openvino"}, "openvino bf16 cpu"),
        (INT8_PROVEN, {"parity": []}, VNNI, ALL_LIBRARIES, {}, "onnx fp32 cpu"),
        (INT8_PROVEN, {"files": PLAIN_PACKAGE.files}, VNNI, ALL_LIBRARIES, {}, "openvino bf16 cpu"),
        (INT8_PROVEN, {"cpu_precision": None}, VNNI, ALL_LIBRARIES, {}, "openvino bf16 cpu"),
    ],
)
def test_a_package_names_its_runtime_and_its_precision_for_cpus(
    package: Manifest,
    update: dict[str, Any],
    hardware: Hardware,
    libraries: InstalledLibraries,
    asked: dict[str, str],
    expected: str,
) -> None:
    assert found(package.model_copy(update=update), hardware, libraries, **asked) == expected


@pytest.mark.parametrize(
    ("libraries", "failed", "expected"),
    [
        (ALL_LIBRARIES, [], "tensorrt fp16 gpu"),
        (ALL_LIBRARIES, ["fp16"], "tensorrt bf16 gpu"),
        (ALL_LIBRARIES, ["fp16", "bf16"], "tensorrt fp32 gpu"),
        (ALL_LIBRARIES, ["fp16", "bf16", "fp32"], "onnx fp16 gpu"),
        (ONNX_CUDA, [], "onnx fp16 gpu"),
        (TORCH_GPU, [], "torch bf16 gpu"),
        (CPU_LIBRARIES, [], "openvino bf16 cpu"),
    ],
)
def test_what_will_be_checked_is_chosen_until_it_fails(
    libraries: InstalledLibraries, failed: list[Precision], expected: str
) -> None:
    package, machine = make_manifest(files=ALL_GRAPHS), Machine(H100, libraries)
    checks = Checks(are_possible=True)
    for precision in failed:
        choice = choose(package, RuntimeRequest(), machine, checks)
        assert (choice.runtime, choice.precision) == ("tensorrt", precision)
        assert checks.are_due(package, choice)
        entry = proven("tensorrt", precision).model_copy(update={"mask_agreement": 0.5})
        checks = checks.with_entries(choice, [entry])
        assert not checks.are_due(package, choice)
    choice = choose(package, RuntimeRequest(), machine, checks)
    assert f"{choice.runtime} {choice.precision} {choice.device}" == expected
    number = "mask_agreement is 0.5, min_mask_agreement 0.995"
    assert choice.reason.count(number) == len(failed)


def all_libraries() -> list[InstalledLibraries]:
    """Every set of libraries that can be installed."""
    devices: list[frozenset[Any]] = [frozenset(), frozenset({"cpu"}), frozenset({"cpu", "gpu"})]
    return [
        InstalledLibraries(onnx=o, openvino=v, tensorrt=t, torch=p)
        for o, v, t, p in product(devices, (False, True), (False, True), devices)
    ]


def test_auto_chooses_only_what_is_exact_or_proven_and_available() -> None:
    packages = [
        make_manifest(*proofs, files=files)
        for proofs in ((), PROOFS[:1], PROOFS[1:], PROOFS)
        for files in (FILES, ALL_GRAPHS, ONLY_TORCH)
    ]
    refusals: set[type[Exception]] = set()
    for hardware, libraries, package in product(
        (PLAIN, SLOW_BF16, BF16, H100), all_libraries(), packages
    ):
        try:
            choice = choose(package, RuntimeRequest(), Machine(hardware, libraries))
        except (MissingRuntimeError, PackageError) as error:
            refusals.add(type(error))
            continue
        entries = [(e.runtime, e.precision) for e in package.parity if choice.device == "cpu"]
        assert choice.precision == "fp32" or (choice.runtime, choice.precision) in entries
        assert choice.precision not in {"int8", "int8_weights"}
        assert choice.device == "cpu" or hardware.has_gpu
        if choice.precision == "bf16" and choice.device == "cpu":
            assert "fast_bf16" in hardware.cpu_features
        if hardware.has_gpu and choice.device == "cpu":
            assert "needs" in choice.reason, "the reason names what the GPU would need"
    assert refusals == {MissingRuntimeError, PackageError}


@pytest.mark.parametrize(
    ("hardware", "libraries", "asked", "error", "words"),
    [
        (PLAIN, CPU_LIBRARIES, "openvino bf16", UnusableRuntimeError, "no avx512_bf16 or amx_bf16"),
        (PLAIN, ALL_LIBRARIES, "auto auto gpu", UnusableRuntimeError, "no NVIDIA GPU"),
        (H100, CPU_LIBRARIES, "onnx auto gpu", MissingRuntimeError, r"'\.\[gpu\]'"),
        (H100, CPU_LIBRARIES, "tensorrt", MissingRuntimeError, r"'\.\[gpu\]'"),
        (PLAIN, CPU_LIBRARIES, "torch", MissingRuntimeError, r"'\.\[torch\]'"),
        (H100, TORCH_CPU, "torch auto gpu", MissingRuntimeError, "built with CUDA"),
        (PLAIN, InstalledLibraries(), "auto", MissingRuntimeError, r"'\.\[cpu\]'"),
        (PLAIN, CPU_LIBRARIES, "auto int8", PackageError, r"has no file .*_int8\.onnx"),
        (BF16, CPU_LIBRARIES, "onnx bf16 cpu", UnusableRuntimeError, "cannot be combined"),
        (PLAIN, CPU_LIBRARIES, "tensorflow", UnusableRuntimeError, "unknown runtime"),
        (PLAIN, CPU_LIBRARIES, "auto fp8", UnusableRuntimeError, "unknown precision"),
    ],
)
def test_an_unusable_request_is_refused_with_its_reason(
    hardware: Hardware,
    libraries: InstalledLibraries,
    asked: str,
    error: type[Exception],
    words: str,
) -> None:
    request = dict(zip(("runtime", "precision", "device"), asked.split(), strict=False))
    with pytest.raises(error, match=words):
        found(BF16_PROVEN, hardware, libraries, **request)
