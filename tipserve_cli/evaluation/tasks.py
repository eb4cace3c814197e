"""The evaluation tasks: from the answers of a model on a set to scores with intervals.

Shapes: S examples, K classes, B images, T texts, Q queries, C candidates, D width, H W pixels, P
pixels that count.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.labelled import sets
from model.labelled.polygons import read_polygons
from model.labelled.sets import SegmentationSet, SetError, Split
from model.scores.pixels import angles, depth_scores
from model.scores.ranking import Ranking, rank
from model.segmentation import l2_normalize
from tipserve_cli.evaluation.answers import Answers, Question
from tipserve_cli.evaluation.masks import score_segmentation
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.evaluation.results import Floats, Metric, Result, Score, Sums, result_of
from tipserve_client.results import FloatArray

KNN: Final = "kNN classification"
LINEAR: Final = "linear classification"
# Of DINO's protocol: neighbours, and the temperature of their votes.
NUM_NEIGHBOURS: Final = 20
VOTE_TEMPERATURE: Final = 0.07
QUERIES_AT_ONCE: Final = 512
VALUES_AT_ONCE: Final = 256 * 1024 * 1024
NEAR_DEGREES: Final = (11.25, 22.5, 30.0)


def _embedded(given: sets.ImageSet, answers: Answers, options: EvaluateOptions) -> FloatArray:
    """Embeddings of the images [B, D]."""
    asked = {"outputs": options.embedding, "resolution": options.resolution}
    return answers.embed(given.images, Question(about="embedding", options=asked))


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
    return result_of(sets.RETRIEVAL, given, options.shown(), scores)


def score_classification(
    given: sets.LabelledSet, answers: Answers, options: EvaluateOptions
) -> Result:
    """Rank class names for each image."""
    templates = options.sentences or "tcl"
    images_BD = _embedded(given, answers, options)
    classes_KD = answers.embed_texts(given.names, templates)
    scores_BK = l2_normalize(images_BD) @ l2_normalize(classes_KD).T
    shown = {**options.shown(), "templates": templates}
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
    return result_of(sets.INSTANCES, given, options.shown(), scores, examples=asked)


def _found_in_groups(ranking: Ranking, group_Q: Sequence[str]) -> list[Score]:
    """R@1, 5 and 10, as means over the groups of queries."""
    size_of = Counter(group_Q)
    weight_Q = np.asarray([1 / size_of[group] for group in group_Q])
    if len(size_of) == 1:
        return _found(ranking, "R@", (1, 5, 10), np.arange(len(ranking)))
    depths = _telling((1, 5, 10), ranking)
    hits = ((depth, (ranking.rank_Q < depth) * weight_Q) for depth in depths)
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
    return _labelled_result(KNN, given.val, scores_BK, options.shown())


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
    shown = {**options.shown(), **search.best_params_}
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
    return result_of(task, given, shown, scores, names=given.names, confusion_KK=confusion_KK)


def _telling(depths: Sequence[int], ranking: Ranking) -> Iterator[int]:
    """The depths below the number of candidates: among as many every query is right."""
    return (depth for depth in depths if depth == 1 or depth < ranking.num_candidates)


def _found(
    ranking: Ranking, metric: str, depths: Sequence[int], example_Q: NDArray[np.int64]
) -> list[Score]:
    """Shares of queries with a right answer at each depth; queries are grouped by example."""
    count_S, found = np.bincount(example_Q).astype(np.float64), []
    for depth in _telling(depths, ranking):
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
    return result_of(name, given, options.shown("resolution"), scores, truth=digest.hexdigest())


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
