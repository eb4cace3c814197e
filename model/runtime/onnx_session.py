"""Opens sessions of ONNX Runtime on the device that was asked for, and on no other.

Where a GPU's libraries are missing, ONNX Runtime writes a line to its log and computes on the CPU,
tens of times slower. Here that is an error.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from model.graphs import Precision
from model.runtime.base import MissingRuntimeError, UnusableRuntimeError
from model.runtime.libraries import INSTALL, INSTALL_ONNX_GPU, Provider

LOG_ERRORS_ONLY: Final = 3
NAMES: Final[dict[Provider, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# What takes nearly all of a transformer's time. Shapes and indices may well be computed on the CPU.
HEAVY_NODES: Final = frozenset(
    {"Attention", "Conv", "FusedMatMul", "Gemm", "LayerNormalization", "MatMul", "Softmax"}
)


class ProviderError(UnusableRuntimeError):
    """ONNX Runtime would have computed elsewhere than it was told to."""


def import_onnxruntime() -> Any:
    """The library.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - only when this runtime is chosen
    except ImportError as error:
        raise MissingRuntimeError(f"the runtime 'onnx' {INSTALL['onnx']}") from error
    return onnxruntime


def open_session(path: Path, provider: Provider, precision: Precision, num_threads: int) -> Any:
    """Load a graph.

    Args:
        path: The `.onnx` file.
        provider: Where it computes.
        precision: Of the graph; decides what a GPU may round.
        num_threads: Threads of one call on the CPU.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed, or was built without the provider.
        ProviderError: The provider does not work here.
    """
    onnxruntime = import_onnxruntime()
    if NAMES[provider] not in onnxruntime.get_available_providers():
        raise MissingRuntimeError(f"the provider '{provider}' of ONNX Runtime {INSTALL_ONNX_GPU}")
    options = _session_options(onnxruntime, num_threads)
    if provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # Finds CUDA and cuDNN where pip has put them.
        onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=_providers(provider, precision), enable_fallback=0
        )
    except (RuntimeError, ValueError) as error:
        if provider == "cpu":
            raise
        raise ProviderError(
            f"ONNX Runtime cannot use the provider '{provider}': {error}"
        ) from error
    if provider != "cpu":
        check_placement(session, provider)
    return session


def check_placement(session: Any, provider: Provider) -> None:
    """Look where a session computes.

    Raises:
        ProviderError: Not where it should, or its large nodes do not.
    """
    used = list(session.get_providers())
    if not used or used[0] != NAMES[provider]:
        raise ProviderError(
            f"ONNX Runtime could not start the provider '{provider}' and would have computed by "
            f"{', '.join(used)} instead. Its own message, in the log above, says why: most often "
            "the libraries of CUDA or cuDNN are missing or of another version, or the driver is "
            "older than they are. Mend that, or ask for the provider 'cpu'"
        )
    strays = sorted(_heavy_nodes_on_cpu(session))
    if strays:
        raise ProviderError(
            f"the provider '{provider}' leaves {', '.join(strays)} of this graph to the CPU, which "
            "would be slower than the CPU alone; choose another precision or provider"
        )


def _heavy_nodes_on_cpu(session: Any) -> Iterable[str]:
    """Types of large nodes that are on the CPU; none where the library is too old to say."""
    placed: Iterable[Any] = getattr(session, "get_provider_graph_assignment_info", tuple)()
    for subgraph in placed:
        if subgraph.ep_name == NAMES["cpu"]:
            yield from {node.op_type for node in subgraph.get_nodes()} & HEAVY_NODES


def _session_options(onnxruntime: Any, num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # The arena stays: it keeps what the largest image took, but without it that takes more.
    # Spinning threads would burn the cores that decoding and other sessions need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(provider: Provider, precision: Precision) -> list[Any]:
    """Providers and their options: what the first cannot compute is left to the next."""
    cuda: dict[str, str] = {
        # float32 shall be float32: TF32 keeps 10 of its 23 bits.
        "use_tf32": "0" if precision == "fp32" else "1",
        # Shapes come mixed; to try every algorithm anew for each would take longer than it saves.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    tensorrt = {
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_bf16_enable": str(int(precision == "bf16")),
        "trt_int8_enable": str(int(precision == "int8")),
    }
    chain: list[Any] = [NAMES["cpu"]]
    if provider != "cpu":
        chain.insert(0, (NAMES["cuda"], cuda))
    if provider == "tensorrt":
        chain.insert(0, (NAMES["tensorrt"], tensorrt))
    return chain
