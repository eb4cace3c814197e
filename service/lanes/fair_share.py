"""How much each flow has had of the lanes, so that flows which wait take turns.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996): a flow that floods the queue waits
behind itself, and one that comes back after a pause goes on level with the others: it neither saves
up turns nor pays for what it had while nobody else waited.
"""


class FairShare:
    """Counts cost by flow. Not thread-safe."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}
        self._level = 0.0

    def come(self, flow: str) -> None:
        """An entry of this flow begins to wait."""
        if flow not in self._num_waiting:
            self._num_waiting[flow] = 0
            self._had[flow] = max(self._had.get(flow, 0.0), self._level)
        self._num_waiting[flow] += 1

    def go(self, flow: str) -> None:
        """One waits no more, whether it was served or not."""
        self._num_waiting[flow] -= 1
        if not self._num_waiting[flow]:
            del self._num_waiting[flow]
        if not self._num_waiting:  # nobody is left to be compared with
            self._had.clear()
            self._level = 0.0

    def serve(self, flow: str, cost: float) -> None:
        """One that waits is served."""
        self._level = self._had[flow]
        self._had[flow] += cost

    def had(self, flow: str) -> float:
        """Cost that it had, on the common scale; of flows that wait the least goes first."""
        return self._had[flow]
