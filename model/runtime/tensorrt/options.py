"""What can be chosen about TensorRT engines and how they are run; all of it has a default."""

from dataclasses import dataclass, field
from pathlib import Path

MAX_OPTIMIZATION_LEVEL = 5
# Where engines are kept below the program's cache.
CACHE_ROOM = "tensorrt"
DEFAULT_CACHE_FOLDER = Path("~/.cache/tipserve") / CACHE_ROOM


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is built for. Another value means another engine.

    Attributes:
        max_batch: Images that one run may hold; more are run one after another.
        best_batch: Images that the kernels are chosen for.
        max_texts: As `max_batch`, for texts.
        best_texts: As `best_batch`, for texts.
        workspace_bytes: Device memory that one layer may use besides; None is all there is.
        optimization_level: 0 to 5: how long the builder looks for faster kernels; 3 is its own
            default.
        is_hardware_compatible: Make engines that also run on other GPUs from Ampere on, which costs
            speed.
        allow_tf32: Let float32 graphs multiply in TF32, which keeps 10 bits of each factor.
    """

    max_batch: int = 64
    best_batch: int = 8
    max_texts: int = 256
    best_texts: int = 32
    workspace_bytes: int | None = None
    optimization_level: int = 3
    is_hardware_compatible: bool = False
    allow_tf32: bool = False

    def __post_init__(self) -> None:
        """Check that the numbers can be meant."""
        for what, best, most in (
            ("images", self.best_batch, self.max_batch),
            ("texts", self.best_texts, self.max_texts),
        ):
            if not 1 <= best <= most:
                raise ValueError(
                    f"engines are made for at least one and at most {most} {what}, not {best}; "
                    "raise the largest batch or lower the one that kernels are chosen for"
                )
        if not 0 <= self.optimization_level <= MAX_OPTIMIZATION_LEVEL:
            raise ValueError(
                f"the optimization level is 0 to {MAX_OPTIMIZATION_LEVEL}, "
                f"not {self.optimization_level}"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError("the workspace needs at least one byte; leave it out for no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """How engines are found and run.

    Attributes:
        engine: What they are built for.
        cache_folder: Where built engines are kept; `~` is the user's home.
        use_package_engines: Use an engine that the package brings for this GPU and version. An
            engine is compiled code: switch it off for packages from strangers.
        use_cuda_graphs: Launch a shape's kernels at once from its third run on.
        max_shapes: Shapes of each graph that stay prepared; the least recently used one goes.
        device_index: Of the GPUs that the process sees. One process serves one GPU: give each its
            own by `CUDA_VISIBLE_DEVICES`, and leave this at 0.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    cache_folder: Path = DEFAULT_CACHE_FOLDER
    use_package_engines: bool = True
    use_cuda_graphs: bool = True
    max_shapes: int = 16
    device_index: int = 0

    def __post_init__(self) -> None:
        """Check that the numbers can be meant."""
        if self.max_shapes < 1:
            raise ValueError(f"at least one shape must stay prepared, not {self.max_shapes}")
        if self.device_index < 0:
            raise ValueError(f"GPUs are counted from 0, not {self.device_index}")
