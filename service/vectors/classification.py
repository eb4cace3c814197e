"""Which of some classes an image shows: a pure function on arrays.

Shape legend: D width, K classes.
"""

import numpy as np

from model.segmentation import l2_normalize
from service.messages import FloatArray
from service.view_messages import Classification


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
