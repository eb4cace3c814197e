"""How much memory an image takes while it is computed, by the kernel's own high-water mark.

Weights are there before; this is what comes and goes with batches, and what large images need
most of. It counts the whole process, so it is measured while nothing else runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.lanes.work import Bucket, Kind

PROC: Final = Path("/proc/self")
# What `clear_refs` takes to set the high-water mark back to what is in use; see proc(5).
RESET_PEAK: Final = "5"


class PeakMeter:
    """Memory beyond what was in use when the meter was made."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._base_bytes = self._status("VmRSS")

    def peak_bytes(self, run: Callable[[], None]) -> int | None:
        """Run something, and say how far memory rose over the base while it ran.

        Returns:
            At least 0; None where the system does not tell.
        """
        is_reset = self._reset()
        run()
        peak_bytes = self._status("VmHWM")
        if not is_reset or peak_bytes is None or self._base_bytes is None:
            return None
        return max(0, peak_bytes - self._base_bytes)

    def _reset(self) -> bool:
        try:
            (self._proc / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return False
        return True

    def _status(self, name: str) -> int | None:
        try:
            lines = (self._proc / "status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        for line in lines.splitlines():
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
        return None


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """What one image of each served shape takes at its peak, in bytes; empty where not known."""

    peak_bytes: Mapping[Bucket, int]

    @property
    def largest_bytes(self) -> int:
        """Of the shape that takes most."""
        return max(self.peak_bytes.values(), default=0)

    def patches_within(
        self, budget_bytes: int, num_patches: Callable[[Bucket], int], kind: Kind = "image"
    ) -> int | None:
        """Patches of a batch that a budget holds, whatever their shape; None where not known.

        Memory grows with the patches where attention is computed in blocks, and the largest shape
        tells best by how much: what small ones take is mostly not theirs.
        """
        peaks = {bucket: peak for bucket, peak in self.peak_bytes.items() if bucket.kind == kind}
        if not any(peaks.values()):
            return None
        largest = max(peaks, key=num_patches)
        per_patch = max(1.0, peaks[largest] / num_patches(largest))
        return int(budget_bytes / per_patch)
