"""What the supervisor gives one worker process: ports, a share of every total, where to report."""

from pydantic import BaseModel

from service.machine import available_cpus
from service.settings import Settings


class WorkerPlace(BaseModel, frozen=True):
    """The place of one worker among all, as JSON on its command line.

    Attributes:
        number: From 0.
        num_workers: All workers.
        num_starting: Workers that start at the same time and so share the free memory.
        ports: Those that the whole server listens on, by protocol.
        report_socket: Name of the Unix socket for its metrics and health, in Linux's abstract
            namespace.
    """

    number: int
    num_workers: int
    num_starting: int
    ports: dict[str, int]
    report_socket: str

    def settings(self, whole: Settings) -> Settings:
        """The settings of this worker."""
        ports = {"http_port": self.ports["http"], "grpc_port": self.ports["grpc"]}
        share = share_of(whole, self.number, self.num_workers)
        return share.model_copy(update={**ports, "ports_file": None})


def share_of(whole: Settings, number: int, num_workers: int) -> Settings:
    """The settings of one worker, whose totals are its share; all shares are the total."""

    def share(total: int) -> int:
        return total // num_workers + (number < total % num_workers)

    shares: dict[str, object] = {name: share(total) for name, (total, _) in whole.totals().items()}
    cpus = max(1, share(whole.cpus or available_cpus()))
    return whole.model_copy(update={**shares, "workers": num_workers, "cpus": cpus})
