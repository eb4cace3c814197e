"""What batches cost on one machine: from a file, or from a server that runs."""

import json
import re
import urllib.request
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from service.lanes.latency_model import CostCurve

ANSWER_LIMIT_S: Final = 10.0
SAMPLE: Final = re.compile(r"(\w+)\{([^}]*)\} (\S+)")
LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
MEASURED: Final = Path(__file__).parent / "measured"


class CurvesError(ValueError):
    """Costs that are not there, or do not make sense."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The line of costs of one shape: a batch of n takes `intercept_s + slope_s * n`."""

    label: str
    patches: int
    intercept_s: float
    slope_s: float

    def __post_init__(self) -> None:
        if self.patches <= 0 or self.slope_s < 0 or self.intercept_s < 0 or self.alone_s <= 0:
            raise CurvesError(f"{self.label}: these are no costs: {self}")

    @property
    def curve(self) -> CostCurve:
        """For batches."""
        return CostCurve(self.intercept_s, self.slope_s)

    @property
    def alone_s(self) -> float:
        """Of a batch of one."""
        return self.intercept_s + self.slope_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Everything that planning needs of one package on one machine.

    Attributes:
        model: Its name.
        machine: What measured it.
        date: When, as year, month and day.
        how: By which clock.
        runtime: What computed, in which precision.
        images: Of square images, the smallest first.
        text: Of short texts.
        beside_s: CPU seconds of an image outside the lanes: decoded, scaled, answered.
    """

    model: str
    machine: str
    date: str
    how: str
    runtime: str
    images: tuple[Cost, ...]
    text: Cost
    beside_s: float = 0.0

    def to_json(self) -> str:
        """For a file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that `to_json` wrote.

        Raises:
            CurvesError: It is something else.
        """
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            images = tuple(Cost(**cost) for cost in document.pop("images"))
            text = Cost(**document.pop("text"))
            return cls(images=images, text=text, **document)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CurvesError(f"{path} holds no costs: {error}") from None

    def image(self, side: int) -> Cost:
        """Of square images of a side; between two that were measured, by a curve through both.

        Costs grow like `a * patches + b * patches^2`, for attention compares all patches with all.

        Raises:
            CurvesError: It lies outside of what was measured.
        """
        by_side = {_side(cost.label): cost for cost in self.images}
        if side in by_side:
            return by_side[side]
        below = [known for known in by_side if known < side]
        above = [known for known in by_side if known > side]
        if not below or not above:
            measured = ", ".join(str(known) for known in sorted(by_side))
            raise CurvesError(f"{side} px was not measured, and lies outside of {measured}")
        return _between(by_side[max(below)], by_side[min(above)], side)


def _side(label: str) -> int:
    return int(label.rpartition("x")[2])


def _between(small: Cost, large: Cost, side: int) -> Cost:
    """The cost of one image at a side between two, with the smaller one's share of intercept."""
    unit = small.patches / _side(small.label) ** 2
    n, first, second = unit * side**2, small.patches, large.patches
    per_first, per_second = small.alone_s / first, large.alone_s / second
    quadratic = (per_second - per_first) / (second - first)
    alone_s = n * (per_first + quadratic * (n - first))
    part = replace(small, label=f"image {side}x{side}", patches=round(n))
    factor = alone_s / small.alone_s
    return replace(part, intercept_s=small.intercept_s * factor, slope_s=small.slope_s * factor)


def read_server(http_url: str, metrics_url: str) -> Curves:
    """What a running server has measured of itself; of its default model.

    Raises:
        CurvesError: It measured no square images or no texts.
        OSError: It does not answer.
    """
    with urllib.request.urlopen(f"{http_url}/v1/models", timeout=ANSWER_LIMIT_S) as answer:
        model = json.load(answer)["data"][0]
    with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=ANSWER_LIMIT_S) as answer:
        costs = _costs(answer.read().decode(), model["id"], model["patch_size"])
    images = [cost for label, cost in costs.items() if label.startswith("image ")]
    texts = [cost for label, cost in costs.items() if label.startswith("text ")]
    if not images or not texts:
        raise CurvesError(f"{http_url} has measured {len(images)} shapes and {len(texts)} texts")
    return Curves(
        model=model["id"],
        machine=f"the server at {http_url}",
        date="now",
        how="seconds by the clock, as the server learns them",
        runtime=f"{model['runtime']} {model['precision']}",
        images=tuple(sorted(images, key=lambda cost: cost.patches)),
        text=texts[0],
    )


def _costs(text: str, model: str, patch: int) -> dict[str, Cost]:
    """Square images and texts, by the label of their bucket."""
    lines: dict[str, dict[str, float]] = {}
    for name, labels, value in SAMPLE.findall(text):
        found = dict(LABEL.findall(labels))
        if name.startswith("tipserve_batch_cost_") and found.get("model") == model:
            part = "intercept_s" if "intercept" in name else "slope_s"
            lines.setdefault(found["bucket"], {})[part] = float(value)
    costs = {}
    for label, parts in lines.items():
        kind, _, shape = label.partition(" ")
        sides = [int(side) for side in shape.split("x")]
        if kind == "text":
            costs[label] = Cost(label, sides[0], **parts)
        elif kind == "image" and sides[0] == sides[-1]:
            costs[label] = Cost(label, (sides[0] // patch) ** 2, **parts)
    return costs
