"""Scores of a task, as counts of each example, of which a report makes intervals.

Shapes: R resamples of the examples, S examples, K classes, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import ImageSource, Published
from model.scores.bootstrap import Interval, bootstrap
from model.scores.pixels import Pixels

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sums:
    """A sum over what is counted in each example: queries with a right answer, or errors.

    Attributes:
        sum_S: The sum.
        count_S: Number of its terms.
    """

    sum_S: Floats
    count_S: Floats

    def __len__(self) -> int:
        return len(self.sum_S)

    def mean(self, weights_RS: Floats) -> Floats:
        """Mean of the terms [R], with examples weighted by each row."""
        # A resample of few images may have no pixel that counts.
        values_R: Floats = (weights_RS @ self.sum_S) / np.maximum(weights_RS @ self.count_S, 1)
        return values_R

    def share(self, weights_RS: Floats) -> Floats:
        """Mean in percent [R]."""
        return 100 * self.mean(weights_RS)

    def root(self, weights_RS: Floats) -> Floats:
        """Root of the mean [R], where the terms are squares."""
        return self.mean(weights_RS) ** 0.5


Counts = Sums | Pixels
Metric = Callable[[Any, Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A metric of counts.

    Attributes:
        metric: Its name.
        counts: Of each example.
        function: Gives its values for weighted examples.
        chance: Expected value for candidates in random order; None if it is not known.
    """

    metric: str
    counts: Counts
    function: Metric
    chance: float | None = None

    def interval(self, other: Counts | None = None) -> Interval:
        """The value, or its difference to that of other counts of the same examples."""
        return bootstrap(self.function, self.counts, other)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownMask:
    """A mask for the report.

    Attributes:
        image: The image.
        miou: Of this image alone.
        truth_HW: Class of each pixel from 0; -1 is none.
        called_HW: Predicted classes.
    """

    image: ImageSource
    miou: float
    truth_HW: NDArray[np.int64]
    called_HW: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """Scores of one task on one set.

    Attributes:
        task: Name of the task.
        split: Name of the set.
        options: What the scores depend on, for readers.
        examples: Names of the examples, in order.
        scores: The scores.
        names: Of the classes; empty for retrieval.
        confusion_KK: Pixels or images by true and predicted class.
        published: Scores to compare with.
        shown: The best and then the worst masks.
        truth: Digest of the right answers, where no count has them.
    """

    task: str
    split: str
    options: Mapping[str, Any]
    examples: Sequence[str]
    scores: Sequence[Score]
    names: Sequence[str] = ()
    confusion_KK: NDArray[np.int64] | None = None
    published: Sequence[Published] = ()
    shown: Sequence[ShownMask] = ()
    truth: str = ""


def result_of(
    task: str, given: Any, options: Mapping[str, Any], scores: Sequence[Score], **more: Any
) -> Result:
    """The result of a set; its examples are the images."""
    more.setdefault("examples", [image.label for image in given.images])
    published = [one for one in given.published if one.task == task]
    named = {"task": task, "split": given.name, "options": options}
    return Result(**named, scores=scores, published=published, **more)
