"""The runtime is the fastest that is proven and usable, or the one that was asked for."""

from itertools import combinations, product
from typing import Any, get_args

import pytest

from model.graphs import TEXT_FILE, VISION_FILE, Precision, graph_file
from model.manifest import FileEntry, Manifest, ParityEntry, ParityLimits
from model.package import PackageError
from model.runtime.base import MissingRuntimeError, UnusableRuntimeError
from model.runtime.choice import BACKENDS, Machine, RuntimeRequest, choose
from model.runtime.loaded_graphs import vision_file
from model.runtime.machine import Gpu, Hardware, InstalledLibraries, RuntimeName

PLAIN = Hardware()
BF16 = Hardware(cpu_features=frozenset({"bf16"}))
H100 = Hardware(cpu_features=frozenset({"bf16"}), gpus=(Gpu(name="H100"),))
CPU_LIBRARIES = InstalledLibraries(onnx=frozenset({"cpu"}), openvino=True)
ALL_LIBRARIES = InstalledLibraries(
    onnx=frozenset({"cpu", "cuda", "tensorrt"}),
    openvino=True,
    tensorrt=True,
    torch=frozenset({"cpu", "gpu"}),
)
FILES = (VISION_FILE, TEXT_FILE, "model.safetensors")
# Of GPUs: TensorRT takes a graph of each precision.
GPU_FILES = (*FILES, graph_file("vision", "fp16"), graph_file("vision", "bf16"))
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def proven(runtime: RuntimeName, precision: Precision) -> ParityEntry:
    return ParityEntry(
        file=vision_file(runtime, precision),
        runtime=runtime,
        precision=precision,
        reference="torch",
        sizes=[],
        max_abs_diff=0.01,
        min_cosine_patches=0.9995,
        mask_agreement=0.9971,
        limits=ParityLimits(min_mask_agreement=0.995),
    )


def manifest(*parity: ParityEntry, files: tuple[str, ...] = FILES) -> Manifest:
    return Manifest(
        name="made-up",
        variant="b14",
        embed_dim=8,
        native_size=28,
        min_size=14,
        max_size=56,
        shape_buckets=[(28, 28)],
        temperature=0.01,
        outputs=["cls1"],
        licence="none",
        files={name: FileEntry(sha256="0" * 64, size_bytes=1) for name in files},
        parity=list(parity),
    )


BF16_PROVEN = manifest(proven("openvino", "bf16"))


def found(
    package: Manifest, hardware: Hardware, libraries: InstalledLibraries, **asked: str
) -> tuple[str, ...]:
    choice = choose(package, RuntimeRequest(**asked), Machine(hardware, libraries))
    return choice.runtime, choice.precision, choice.device, choice.provider or "-"


TRT_BF16, TRT_FP16 = proven("tensorrt", "bf16"), proven("tensorrt", "fp16")
TRT_BF16_PROVEN = manifest(TRT_BF16, files=GPU_FILES)
TRT_BOTH_PROVEN = manifest(TRT_FP16, TRT_BF16, files=GPU_FILES)
ONNX_CUDA = InstalledLibraries(onnx=frozenset({"cpu", "cuda"}), openvino=True)
TORCH_CPU = InstalledLibraries(torch=frozenset({"cpu"}))
TORCH_GPU = InstalledLibraries(onnx=frozenset({"cpu"}), torch=frozenset({"cpu", "gpu"}))
OPENVINO_BF16 = ("openvino", "bf16", "cpu", "-")
OPENVINO_FP32 = ("openvino", "fp32", "cpu", "-")
ONNX_FP32 = ("onnx", "fp32", "cpu", "cpu")
TORCH_FP32 = ("torch", "fp32", "cpu", "-")


@pytest.mark.parametrize(
    ("package", "hardware", "libraries", "expected"),
    [
        (BF16_PROVEN, BF16, CPU_LIBRARIES, OPENVINO_BF16),
        (manifest(), BF16, CPU_LIBRARIES, OPENVINO_FP32),
        (BF16_PROVEN, PLAIN, CPU_LIBRARIES, OPENVINO_FP32),
        (manifest(proven("onnx", "bf16")), BF16, CPU_LIBRARIES, OPENVINO_FP32),
        (BF16_PROVEN, BF16, InstalledLibraries(onnx=frozenset({"cpu"})), ONNX_FP32),
        (BF16_PROVEN, BF16, TORCH_CPU, TORCH_FP32),
        (BF16_PROVEN, BF16, ALL_LIBRARIES, OPENVINO_BF16),
        (manifest(files=FILES[2:]), BF16, ALL_LIBRARIES, TORCH_FP32),
        (manifest(), H100, ALL_LIBRARIES, ("tensorrt", "fp32", "gpu", "-")),
        (TRT_BF16_PROVEN, H100, ALL_LIBRARIES, ("tensorrt", "bf16", "gpu", "-")),
        (TRT_BOTH_PROVEN, H100, ALL_LIBRARIES, ("tensorrt", "fp16", "gpu", "-")),
        (manifest(proven("onnx", "fp16")), H100, ONNX_CUDA, ("onnx", "fp32", "gpu", "cuda")),
        (manifest(proven("torch", "bf16")), H100, TORCH_GPU, ("torch", "bf16", "gpu", "-")),
        (BF16_PROVEN, H100, CPU_LIBRARIES, OPENVINO_BF16),
    ],
)
def test_auto_is_the_fastest_that_is_proven(
    package: Manifest, hardware: Hardware, libraries: InstalledLibraries, expected: tuple[str, ...]
) -> None:
    assert found(package, hardware, libraries) == expected


def all_libraries() -> list[InstalledLibraries]:
    """Every set of libraries that can be installed."""
    onnx: list[frozenset[Any]] = [frozenset(), frozenset({"cpu"}), ALL_LIBRARIES.onnx]
    torch: list[frozenset[Any]] = [frozenset(), frozenset({"cpu"}), ALL_LIBRARIES.torch]
    return [
        InstalledLibraries(onnx=o, openvino=v, tensorrt=t, torch=p)
        for o, v, t, p in product(onnx, (False, True), (False, True), torch)
    ]


def all_packages() -> list[Manifest]:
    """With and without each graph and each proof that counts."""
    proofs = [
        proven("openvino", "bf16"),
        proven("tensorrt", "fp16"),
        proven("torch", "bf16"),
        proven("onnx", "fp16"),
    ]
    sets = [few for size in range(len(proofs) + 1) for few in combinations(proofs, size)]
    quantised = (*FILES, graph_file("vision", "int8"), graph_file("vision", "fp16"))
    files = (FILES, quantised, FILES[2:])
    return [manifest(*some, files=these) for some in sets for these in files]


def test_auto_chooses_only_what_is_exact_or_proven_and_available() -> None:
    refusals: set[type[Exception]] = set()
    for hardware, libraries, package in product(
        (PLAIN, BF16, H100), all_libraries(), all_packages()
    ):
        machine = Machine(hardware, libraries)
        try:
            choice = choose(package, RuntimeRequest(), machine)
        except (MissingRuntimeError, PackageError) as error:
            refusals.add(type(error))
            continue
        entries = [(e.runtime, e.precision) for e in package.parity]
        assert choice.precision == "fp32" or (choice.runtime, choice.precision) in entries
        assert choice.precision not in {"int8", "int8_weights"}
        assert choice.device == "cpu" or hardware.gpus
        assert choice.precision != "bf16" or choice.device == "gpu" or hardware.cpu_features
        assert choice.provider != "tensorrt", "only where it is named"
        assert choice.reason.startswith(f"{choice.runtime} on ")
        if hardware.gpus and choice.device == "cpu":
            assert "needs" in choice.reason, "it says what the GPU would need"
    assert refusals == {MissingRuntimeError, PackageError}


def test_a_request_is_fulfilled_or_refused() -> None:
    names = ("auto", *dict.fromkeys(way.runtime for way in BACKENDS))
    wishes = product(
        names,
        ("auto", *PRECISIONS),
        ("auto", "cpu", "gpu"),
        ("auto", "cpu", "cuda", "tensorrt"),
    )
    graphs = tuple(graph_file("vision", precision) for precision in PRECISIONS)
    machine = Machine(H100, ALL_LIBRARIES)
    refusals: list[str] = []
    for runtime, precision, device, provider in wishes:
        request = RuntimeRequest(
            runtime=runtime, precision=precision, device=device, provider=provider
        )
        try:
            choice = choose(manifest(files=(*FILES, *graphs)), request, machine)
        except UnusableRuntimeError as error:
            refusals.append(str(error))
            continue
        assert runtime in {"auto", choice.runtime}
        assert precision in {"auto", choice.precision}
        assert device in {"auto", choice.device}
        assert provider in {"auto", choice.provider}
    assert len(refusals) > 100
    assert all("cannot be combined; possible are tensorrt on gpu" in text for text in refusals)


@pytest.mark.parametrize(
    ("hardware", "libraries", "asked", "error", "words"),
    [
        (PLAIN, CPU_LIBRARIES, "openvino bf16", UnusableRuntimeError, "no avx512_bf16 or amx_bf16"),
        (PLAIN, ALL_LIBRARIES, "auto auto gpu", UnusableRuntimeError, "no NVIDIA GPU"),
        (H100, CPU_LIBRARIES, "auto auto auto cuda", MissingRuntimeError, r"tipserve\[gpu\]"),
        (H100, CPU_LIBRARIES, "tensorrt", MissingRuntimeError, r"tipserve\[gpu\]"),
        (PLAIN, CPU_LIBRARIES, "torch", MissingRuntimeError, r"tipserve\[torch\]"),
        (H100, TORCH_CPU, "torch auto gpu", MissingRuntimeError, "built with CUDA"),
        (PLAIN, InstalledLibraries(), "auto", MissingRuntimeError, r"tipserve\[cpu\]"),
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
    fields = ("runtime", "precision", "device", "provider")
    request = dict(zip(fields, asked.split(), strict=False))
    with pytest.raises(error, match=words):
        found(BF16_PROVEN, hardware, libraries, **request)
