"""nvImageCodec with its own CPU decoder in the GPU's place; all else is the library's."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest


class StandInCodec:
    """The module `nvidia.nvimgcodec`, whose decoders count and fail as a test wants.

    Attributes:
        fault: What decoding raises, or "none" to decode nothing.
        options: Options of the decoders instead of the given ones.
    """

    def __init__(self) -> None:
        self._library = pytest.importorskip("nvidia.nvimgcodec")
        self._lock = threading.Lock()
        self.fault: Exception | str = ""
        self.options: str | None = None
        self.num_decoders = self.num_decoded = 0
        self.Decoder = self._make_decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def _make_decoder(
        self, *, max_num_cpu_threads: int, backends: Sequence[Any], options: str
    ) -> "StandInDecoder":
        """As the library's class, for a GPU that is there."""
        library = self._library
        assert {one.backend_kind for one in backends} == {
            library.HW_GPU_ONLY,
            library.GPU_ONLY,
            library.HYBRID_CPU_GPU,
        }
        with self._lock:
            self.num_decoders += 1
        decoder = library.Decoder(
            device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=max_num_cpu_threads,
            backends=[library.Backend(library.CPU_ONLY)],
            options=options if self.options is None else self.options,
        )
        return StandInDecoder(self, decoder)

    def count(self) -> None:
        """One more call of a decoder."""
        with self._lock:
            self.num_decoded += 1


class StandInDecoder:
    """A decoder of one thread."""

    def __init__(self, codec: StandInCodec, decoder: Any) -> None:
        self._codec, self._decoder = codec, decoder
        self._thread = threading.get_ident()

    def decode(self, stream: Any, *, params: Any) -> Any:
        """As the library's, or the fault."""
        assert threading.get_ident() == self._thread, "nvImageCodec's decoders are not thread-safe"
        self._codec.count()
        if isinstance(self._codec.fault, Exception):
            raise self._codec.fault
        return None if self._codec.fault == "none" else self._decoder.decode(stream, params=params)
