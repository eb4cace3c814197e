"""Embeddings in fewer bytes, and classes of whole images."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.segmentation import l2_normalize
from service.messages import Classification, FloatArray, VectorType

# Which of some classes an image shows: a pure function on arrays.
#
# Shape legend: D width, K classes.


def classify(
    embedding_D: FloatArray, classes_KD: FloatArray, *, temperature: float, top_k: int | None
) -> Classification:
    """All classes, or the best ones, the best first; of equal ones the first as given.

    Args:
        embedding_D: Of the image; need not be normalised.
        classes_KD: One unit vector for each class.
        temperature: What cosines are divided by before the softmax over all classes.
        top_k: How many are kept; None is all.

    Source: the softmax is that of the demonstration notebook of google-deepmind/tips.
    """
    cosines_K = classes_KD @ l2_normalize(embedding_D)
    logits_K = cosines_K.astype(np.float64) / temperature
    shares_K = np.exp(logits_K - logits_K.max())
    shares_K /= shares_K.sum()
    best = np.argsort(-cosines_K, kind="stable")[:top_k]
    return Classification(
        labels_K=(best + 1).astype(np.uint16),
        probabilities_K=shares_K[best].astype(np.float32),
        cosines_K=cosines_K[best],
    )


# Embeddings as fewer bytes: half precision, or whole numbers with a scale for each row.
#
# Shape legend: D width; `...` whatever comes before it.

# int8 has -128 too, which is not used, so that a vector and its opposite look alike.
GREATEST: Final = 127


def pack(array: FloatArray, vector_type: VectorType) -> tuple[NDArray[Any], FloatArray | None]:
    """Rows as they are sent, and their scales.

    Args:
        array: float32 [..., D].
        vector_type: As what numbers.

    Returns:
        The rows, and with int8 the factors [...], by which each row is to be multiplied: a row's
        greatest magnitude becomes 127, so that no element is off by more than half a factor.
    """
    if vector_type == "float16":
        with np.errstate(over="ignore"):  # infinite, as the format has it
            return array.astype(np.float16), None
    if vector_type == "int8":
        scales = np.asarray(np.abs(array).max(axis=-1) / np.float32(GREATEST))
        # A row of zeros stays one; any factor would do.
        divisors = np.where(scales > 0, scales, np.float32(1))[..., None]
        return np.rint(array / divisors).astype(np.int8), scales
    return array, None


def pack_all(
    outputs: dict[str, FloatArray], vector_type: VectorType
) -> tuple[dict[str, NDArray[Any]], dict[str, FloatArray]]:
    """Rows and scales by name, of all outputs of one image."""
    packed = {name: pack(array, vector_type) for name, array in outputs.items()}
    scales = {name: scale for name, (_, scale) in packed.items() if scale is not None}
    return {name: rows for name, (rows, _) in packed.items()}, scales
