"""The evaluation tasks: from the answers of a model on a set to scores with intervals.

Shapes: R resamples of the examples, S examples, K classes, B images, T texts, Q queries, C
candidates, D width, H W pixels, P pixels that count.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.labelled import sets
from model.labelled.polygons import read_polygons
from model.labelled.sets import BACKGROUND_NAME, SegmentationSet, SetError, Split
from model.scores.bootstrap import Interval, bootstrap
from model.scores.pixels import NO_CLASS, Pixels, angles, count_pixels, depth_scores
from model.scores.ranking import Ranking, rank
from model.segmentation import l2_normalize
from tipserve_cli.evaluation.answers import Answers, Question
from tipserve_cli.evaluation.object_scores import ObjectScores
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_client.results import FloatArray

KNN: Final = "kNN classification"
LINEAR: Final = "linear classification"
# Of DINO's protocol: neighbours, and the temperature of their votes.
NUM_NEIGHBOURS: Final = 20
VOTE_TEMPERATURE: Final = 0.07
QUERIES_AT_ONCE: Final = 512
VALUES_AT_ONCE: Final = 256 * 1024 * 1024
NEAR_DEGREES: Final = (11.25, 22.5, 30.0)
_MASK_OPTIONS: Final = (
    "mode", "features", "templates", "resolution", "quality", "background", "background_level",
    "background_threshold",
)  # fmt: skip
Floats = NDArray[np.float64]
MaskQuestion = Literal["mask", "scored mask"]


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

    image: sets.ImageSource
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
    published: Sequence[sets.Published] = ()
    shown: Sequence[ShownMask] = ()
    truth: str = ""


def _result(
    task: str, given: Any, options: Mapping[str, Any], scores: Sequence[Score], **more: Any
) -> Result:
    """The result of a set; its examples are the images."""
    more.setdefault("examples", [image.label for image in given.images])
    published = [one for one in given.published if one.task == task]
    named = {"task": task, "split": given.name, "options": options}
    return Result(**named, scores=scores, published=published, **more)


def _prompted(options: EvaluateOptions, names: Sequence[str]) -> tuple[str, ...]:
    """The classes that the model is asked for: the names that it compares patches with."""
    if options.classes is not None:
        return (options.classes,)
    is_all = options.finds_no_background
    return tuple(name for name in names if is_all or name != BACKGROUND_NAME)


def _about_masks(
    options: EvaluateOptions, names: Sequence[str], about: MaskQuestion = "mask"
) -> Question:
    """The question of segmentation; `background` is no class if there is a threshold."""
    asked = {name: getattr(options, name) for name in (*_MASK_OPTIONS, "fit")}
    asked["templates"] = options.sentences
    return Question(about=about, options=asked, classes=_prompted(options, names))


def _embedded(given: sets.ImageSet, answers: Answers, options: EvaluateOptions) -> FloatArray:
    """Embeddings of the images [B, D]."""
    asked = {"outputs": options.embedding, "resolution": options.resolution}
    return answers.embed(given.images, Question(about="embedding", options=asked))


def _shown(options: EvaluateOptions, *names: str) -> dict[str, Any]:
    """Options for a report, without those that are not given."""
    given = {name: getattr(options, name) for name in names or ("embedding", "resolution")}
    if "templates" in given:
        given["templates"] = options.sentences
    return {name: value for name, value in given.items() if value is not None}


def score_segmentation(
    given: SegmentationSet, answers: Answers, options: EvaluateOptions
) -> Result:
    """Compare predicted with true masks: all names pixel by pixel, and objects with background.

    Pixels of a class of the model that the set does not have are errors of their own class only.
    """
    question = _about_masks(options, given.names)
    number_of = {name: number for number, name in enumerate(given.names)}
    if options.classes is None:
        task, labels = sets.SEGMENTATION, question.classes
    else:
        task, labels = sets.OWN_SEGMENTATION, answers.classes_of(given.images[0], question)
        unknown = [name for name in given.names if name not in labels]
        if unknown:
            raise SetError(
                f"{given.name}: the model has no class {unknown[0]!r}; it has {', '.join(labels)}."
            )
    # Class of each label of the model; 0 is its background.
    class_of = np.asarray([number_of.get(name, NO_CLASS) for name in (BACKGROUND_NAME, *labels)])
    further = _further_questions(given, options)
    objects = ObjectScores(given, is_fitted=options.finds_no_background)

    def called() -> Iterator[NDArray[np.int64]]:
        asked = [[question, *more] for more in further]
        for index, (mask_HW, *more) in enumerate(answers.each_of(given.images, asked)):
            for one, array in zip(further[index], more, strict=True):
                add = objects.add_named if one.about == "mask" else objects.add_objects
                add(index, one.classes, array)
            yield class_of[mask_HW]

    shown = _shown(options, *_MASK_OPTIONS)
    result = _masks_result(task, given, called(), shown)
    return replace(result, scores=[*result.scores, *_object_scores(objects, further, answers)])


def _further_questions(given: SegmentationSet, options: EvaluateOptions) -> list[list[Question]]:
    """For each image: the mask of the names that it shows, and that of its objects.

    Objects need a background; and a threshold for an image comes from others.
    """
    if options.classes is not None:
        return [[] for _ in given.images]
    objects = ObjectScores(given, is_fitted=options.finds_no_background)
    has_objects = given.read_objects(0) is not None
    has_objects &= len(given.images) > 1 or not options.finds_no_background
    found = []
    for index in range(len(given.images)):
        shown, of_objects = objects.names_of(index)
        own = [_about_masks(options, shown)] if shown else []
        if has_objects:
            own.append(_about_masks(options, of_objects, "scored mask"))
        found.append(own)
    return found


def _object_scores(
    objects: ObjectScores, further: Sequence[Sequence[Question]], answers: Answers
) -> Iterator[Score]:
    """Means over the objects of all images; masks at fitted thresholds are stored already."""
    scored = [one for own in further for one in own if one.about == "scored mask"]
    if scored and objects.is_fitted:
        silent = replace(answers, advance=lambda: None)
        images, thresholds = objects.given.images, objects.thresholds().tolist()
        arrays = silent.each_of(images, [[one] for one in scored])
        for index, ((array,), threshold) in enumerate(zip(arrays, thresholds, strict=True)):
            objects.add_above(index, scored[index].classes, array, threshold)
    for metric, values in objects.values.items():
        sum_S, count_S = np.array([(sum(own), len(own)) for own in values], np.float64).T
        yield Score(metric, Sums(sum_S, count_S), Sums.share)


def _masks_result(
    task: str, given: SegmentationSet, masks: Iterable[NDArray[np.int64]], shown: Mapping[str, Any]
) -> Result:
    """Compare predicted classes [H, W] with the true ones, pixel by pixel; -1 is no class."""
    num_classes = len(given.names)
    tables = []
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    best: list[ShownMask] = []
    worst: list[ShownMask] = []
    for index, called_HW in enumerate(masks):
        image, truth_HW = given.images[index], given.read(index)
        if truth_HW.shape != called_HW.shape:
            raise SetError(
                f"{given.maps[index]} has {truth_HW.shape}, its image {called_HW.shape} rows and "
                "columns."
            )
        table_KK, counts_3K = count_pixels(truth_HW, called_HW, num_classes)
        confusion_KK += table_KK
        tables.append(counts_3K)
        if counts_3K[1].any():
            miou = float(Pixels.of([counts_3K]).miou(np.ones((1, 1)))[0])
            mask = ShownMask(image=image, miou=miou, truth_HW=truth_HW, called_HW=called_HW)
            best = sorted([*best, mask], key=lambda one: -one.miou)[:3]
            worst = sorted([*worst, mask], key=lambda one: one.miou)[:3]
    counts = Pixels.of(tables)
    if not counts.truth_SK.any():
        raise SetError(f"{given.name}: no mask has a pixel of a class.")
    return _result(
        task,
        given,
        {**shown, "reduce_zero_label": given.reduce_zero_label},
        [Score("mIoU", counts, Pixels.miou), Score("pixel accuracy", counts, Pixels.accuracy)],
        names=given.names,
        confusion_KK=confusion_KK,
        shown=[*best, *(one for one in worst if one not in best)],
    )


def score_retrieval(given: sets.CaptionedSet, answers: Answers, options: EvaluateOptions) -> Result:
    """Rank all captions for each image, and all images for each caption.

    Every caption of an image is a right answer for it. Intervals are over images with their
    captions.
    """
    texts = [text for captions in given.captions for text in captions]
    owner_T = np.repeat(np.arange(len(given.images)), [len(one) for one in given.captions])
    images_BD = _embedded(given, answers, options)
    texts_TD = answers.embed_texts(texts, "none")
    each_B = np.arange(len(given.images))
    scores: list[Score] = []
    for way, queries_QD, candidates_CD, key_Q, key_C in (
        ("image to text", images_BD, texts_TD, each_B, owner_T),
        ("text to image", texts_TD, images_BD, owner_T, each_B),
    ):
        keys = [(key,) for key in key_Q.tolist()], key_C
        ranking = rank_by_cosine(queries_QD, candidates_CD, keys, np.full(len(key_Q), -1))
        scores += _found(ranking, f"{way} R@", (1, 5, 10), key_Q)
    return _result(sets.RETRIEVAL, given, _shown(options), scores)


def score_classification(
    given: sets.LabelledSet, answers: Answers, options: EvaluateOptions
) -> Result:
    """Rank class names for each image."""
    templates = options.sentences or "tcl"
    images_BD = _embedded(given, answers, options)
    classes_KD = answers.embed_texts(given.names, templates)
    scores_BK = l2_normalize(images_BD) @ l2_normalize(classes_KD).T
    shown = {**_shown(options), "templates": templates}
    return _labelled_result(sets.CLASSIFICATION, given, scores_BK, shown)


def score_instances(given: sets.InstanceSet, answers: Answers, options: EvaluateOptions) -> Result:
    """Rank images of an index for each query image; those of the same thing are right.

    A query that is in the index is searched among the others.
    """
    images_BD = _embedded(given, answers, options)
    index_CD = images_BD[: len(given.things)]
    place_Q = np.asarray([query.place for query in given.queries])
    own_Q = np.where(place_Q < len(index_CD), place_Q, -1)
    keys = [query.things for query in given.queries], np.asarray(given.things)
    ranking = rank_by_cosine(images_BD[place_Q], index_CD, keys, own_Q=own_Q)
    scores = _found_in_groups(ranking, [query.group for query in given.queries])
    asked = [given.images[place].label for place in place_Q]
    return _result(sets.INSTANCES, given, _shown(options), scores, examples=asked)


def _found_in_groups(ranking: Ranking, group_Q: Sequence[str]) -> list[Score]:
    """R@1, 5 and 10, as means over the groups of queries."""
    size_of = Counter(group_Q)
    weight_Q = np.asarray([1 / size_of[group] for group in group_Q])
    if len(size_of) == 1:
        return _found(ranking, "R@", (1, 5, 10), np.arange(len(ranking)))
    hits = ((depth, (ranking.rank_Q < depth) * weight_Q) for depth in (1, 5, 10))
    return [Score(f"R@{depth}", Sums(hit_Q, weight_Q), Sums.share) for depth, hit_Q in hits]


def score_knn(given: Split[sets.LabelledSet], answers: Answers, options: EvaluateOptions) -> Result:
    """Classify each image by the votes of its nearest neighbours in `train`.

    Source: DINO (arXiv:2104.14294), weighted kNN.
    """
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415 - of the extra `evaluate`

    train_BD, val_BD = (_embedded(one, answers, options) for one in (given.train, given.val))
    classifier = KNeighborsClassifier(
        n_neighbors=min(NUM_NEIGHBOURS, len(train_BD)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / VOTE_TEMPERATURE),
    ).fit(train_BD, given.train.labels)
    scores_BK = classifier.predict_proba(val_BD)
    return _labelled_result(KNN, given.val, scores_BK, _shown(options))


def score_linear(
    given: Split[sets.LabelledSet], answers: Answers, options: EvaluateOptions
) -> Result:
    """Classify each image by a logistic regression that is fitted to `train`.

    Its regularisation is chosen by cross-validation in `train`.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - of the extra `evaluate`
    from sklearn.model_selection import GridSearchCV  # noqa: PLC0415

    fewest = min(np.bincount(given.train.labels))
    if fewest < 2:
        raise SetError(
            f"{given.val.name}: a linear classifier needs two train/ images of each class."
        )
    train_BD, val_BD = (_embedded(one, answers, options) for one in (given.train, given.val))
    regression, grid = LogisticRegression(max_iter=1000), {"C": np.logspace(-1, 4, 6)}
    with warnings.catch_warnings():
        # Few images of many classes look like a regression to it.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        search = GridSearchCV(regression, grid, cv=min(5, fewest))
        search.fit(train_BD, given.train.labels)
    shown = {**_shown(options), **search.best_params_}
    return _labelled_result(LINEAR, given.val, search.predict_proba(val_BD), shown)


def rank_by_cosine(
    queries_QD: FloatArray,
    candidates_CD: FloatArray,
    keys: tuple[Sequence[tuple[int, ...]], NDArray[np.int64]],
    own_Q: NDArray[np.intp],
) -> Ranking:
    """Rank candidates for each query; those with one of its keys are right.

    Args:
        queries_QD: Embeddings.
        candidates_CD: Embeddings.
        keys: Of the queries, Q, and of the candidates, C.
        own_Q: The candidate that each query is itself, which is left out; -1 for none.
    """
    unit_QD, unit_CD = l2_normalize(queries_QD), l2_normalize(candidates_CD)
    parts = []
    at_once = max(1, min(QUERIES_AT_ONCE, VALUES_AT_ONCE // len(unit_CD)))
    for start in range(0, len(unit_QD), at_once):
        part = slice(start, start + at_once)
        scores_QC = unit_QD[part] @ unit_CD.T
        right_QC = np.stack([np.isin(keys[1], own) for own in keys[0][part]])
        row_P = np.flatnonzero(own_Q[part] >= 0)
        own = row_P, own_Q[part][row_P]
        scores_QC[own], right_QC[own] = -np.inf, False
        parts.append(rank(scores_QC, right_QC))
    return Ranking(
        rank_Q=np.concatenate([part.rank_Q for part in parts]),
        num_right_Q=np.concatenate([part.num_right_Q for part in parts]),
        num_candidates=len(unit_CD) - bool((own_Q >= 0).all()),
    )


def _labelled_result(
    task: str, given: sets.LabelledSet, scores_BK: NDArray[Any], shown: Mapping[str, Any]
) -> Result:
    label_B = np.asarray(given.labels)
    num_classes = len(given.names)
    ranking = rank(scores_BK, label_B[:, None] == np.arange(num_classes))
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion_KK, (label_B, scores_BK.argmax(1)), 1)
    scores = _found(ranking, "top-", (1, 5), np.arange(len(ranking)))
    return _result(task, given, shown, scores, names=given.names, confusion_KK=confusion_KK)


def _found(
    ranking: Ranking, metric: str, depths: Sequence[int], example_Q: NDArray[np.int64]
) -> list[Score]:
    """Shares of queries with a right answer at each depth; queries are grouped by example."""
    count_S, found = np.bincount(example_Q).astype(np.float64), []
    for depth in depths:
        sum_S = np.bincount(example_Q, ranking.rank_Q < depth).astype(np.float64)
        counts = Sums(sum_S, count_S)
        found.append(Score(f"{metric}{depth}", counts, Sums.share, ranking.chance(depth)))
    return found


def score_depth(given: sets.DepthSet, answers: Answers, options: EvaluateOptions) -> Result:
    """Compare predicted with true depth in each image; the scores are means over the images.

    Source: BTS and DINOv2's evaluation, which average over images, not over pixels.
    """

    def sums(found_HW: FloatArray, truth_HW: Floats) -> Any:
        counts_HW = np.isfinite(truth_HW)
        found_P = np.clip(found_HW[counts_HW].astype(np.float64), *given.range_m)
        return depth_scores(found_P, truth_HW[counts_HW])

    metrics = (("RMSE (m)", Sums.mean), ("AbsRel (%)", Sums.share), ("delta1", Sums.share))
    return _maps_result("depth", given, sums, metrics, answers=answers, options=options)


def score_normals(given: sets.NormalSet, answers: Answers, options: EvaluateOptions) -> Result:
    """Angles between predicted and true normals; the scores are means over pixels or images."""

    def sums(found_HW3: FloatArray, truth_HW3: Floats) -> Any:
        counts_HW = np.isfinite(truth_HW3[..., 0])
        angle_P = angles(found_HW3[counts_HW].astype(np.float64), truth_HW3[counts_HW])
        near = [np.count_nonzero(angle_P < limit) for limit in NEAR_DEGREES]
        row_6 = np.array([angle_P.sum(), np.square(angle_P).sum(), *near, len(angle_P)], float)
        if given.by_image and len(angle_P):
            row_6 /= len(angle_P)
            row_6[1] = np.sqrt(row_6[1])
        return row_6

    metrics = [
        ("mean angle (degrees)", Sums.mean),
        ("RMSE (degrees)", Sums.mean if given.by_image else Sums.root),
        *((f"under {limit:g} degrees", Sums.share) for limit in NEAR_DEGREES),
    ]
    return _maps_result("normals", given, sums, metrics, answers=answers, options=options)


def _maps_result(
    task: MapTask,
    given: sets.DepthSet | sets.NormalSet,
    sums: Callable[[FloatArray, Floats], Any],
    metrics: Sequence[tuple[str, Metric]],
    *,
    answers: Answers,
    options: EvaluateOptions,
) -> Result:
    """Scores of the sums over each map, whose last one is the count of the others' terms."""
    rows = []
    digest = hashlib.sha256()
    question = Question(about=task, options={"resolution": options.resolution})
    for index, found in enumerate(answers.each(given.images, question)):
        truth = given.read(index)
        if truth.shape != found.shape:
            raise SetError(
                f"{given.maps[index]} has {truth.shape[:2]}, its image {found.shape[:2]} rows and "
                "columns."
            )
        digest.update(truth.tobytes())
        rows.append(sums(found, truth))
    table = np.asarray(rows)
    if not table[:, -1].any():
        raise SetError(f"{given.name}: no image has {task} to compare with.")
    scores = [
        Score(metric, Sums(table[:, column], table[:, -1]), function)
        for column, (metric, function) in enumerate(metrics)
    ]
    name = {"depth": sets.DEPTH, "normals": sets.NORMALS}[task]
    return _result(name, given, _shown(options, "resolution"), scores, truth=digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Task:
    """How a set is read and scored.

    Attributes:
        option: Of the command, with the places of the set.
        read: Reads the set.
        score: Compares answers with it.
        kind: Of the known sets that are scored so; None for none.
        head: The dense head that the model needs; empty for none.
    """

    option: str
    read: Callable[..., Any]
    score: Callable[..., Result]
    kind: type | None = None
    head: str = ""


# In the order of the report.
TASKS: Final = (
    Task("segmentation", sets.read_segmentation, score_segmentation, SegmentationSet),
    Task("polygons", read_polygons, score_segmentation),
    Task("retrieval", sets.read_captioned, score_retrieval, sets.CaptionedSet),
    Task("classification", sets.read_classes, score_classification, sets.LabelledSet),
    Task("instances", sets.read_instances, score_instances, sets.InstanceSet),
    Task("knn", sets.read_split, score_knn),
    Task("linear", sets.read_split, score_linear),
    Task("depth", sets.read_depth, score_depth, sets.DepthSet, "depth"),
    Task("normals", sets.read_normals, score_normals, sets.NormalSet, "normals"),
)
