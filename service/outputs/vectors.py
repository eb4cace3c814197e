"""Classification of images by their embeddings, and embeddings in fewer bytes.

Shape legend: D width, K classes; `...` any leading dimensions.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.graphs import DENSE_TASKS
from model.segmentation import PooledClasses, l2_normalize
from service.messages import Classification, FloatArray, VectorType

# int8 also has -128, which is not used, so that a vector and its opposite are symmetric.
MAX_INT8: Final = 127


def classify(
    embedding_D: FloatArray, classes: PooledClasses, *, temperature: float, top_k: int | None
) -> Classification:
    """Rank classes by similarity, best first; equal ones in the given order.

    Args:
        embedding_D: Embedding of the image; need not be normalised.
        classes: With one unit vector for each class, or several.
        temperature: Divisor of the cosines before the softmax over all classes.
        top_k: Number of classes to keep; None keeps all.

    Source: the softmax is that of the demonstration notebook of google-deepmind/tips.
    """
    cosines_K = classes.cosines(l2_normalize(embedding_D)[None])[:, 0]
    logits_K = cosines_K.astype(np.float64) / temperature
    shares_K = np.exp(logits_K - logits_K.max())
    shares_K /= shares_K.sum()
    best = np.argsort(-cosines_K, kind="stable")[:top_k]
    return Classification(
        labels_K=(best + 1).astype(np.uint16),
        probabilities_K=shares_K[best].astype(np.float32),
        cosines_K=cosines_K[best],
    )


def pack(array: FloatArray, vector_type: VectorType) -> tuple[NDArray[Any], FloatArray | None]:
    """Convert embeddings to a vector type.

    Args:
        array: float32 [..., D].
        vector_type: Type of the result.

    Returns:
        The rows, and with int8 the factor [...] that restores each row: the greatest magnitude of
        a row becomes 127, so that no element is off by more than half a factor.
    """
    if vector_type == "float16":
        with np.errstate(over="ignore"):  # values out of range become infinite
            return array.astype(np.float16), None
    if vector_type == "int8":
        scales = np.asarray(np.abs(array).max(axis=-1) / np.float32(MAX_INT8))
        # A row of zeros needs any divisor but 0.
        divisors = np.where(scales > 0, scales, np.float32(1))[..., None]
        return np.rint(array / divisors).astype(np.int8), scales
    return array, None


def pack_all(
    outputs: dict[str, FloatArray], vector_type: VectorType
) -> tuple[dict[str, NDArray[Any]], dict[str, FloatArray]]:
    """Convert all outputs of one image but its maps; rows and scales by name."""
    packed = {
        name: (array, None) if name in DENSE_TASKS else pack(array, vector_type)
        for name, array in outputs.items()
    }
    scales = {name: scale for name, (_, scale) in packed.items() if scale is not None}
    return {name: rows for name, (rows, _) in packed.items()}, scales
