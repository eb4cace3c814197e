"""Closed-form heads of the encoder, fitted to cells; no gradient step.

Shapes: n cells, F features, K names, D1 and D2 widths of the two spaces, C classes of ImageNet, E
width of MiniLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.segmentation import l2_normalize
from training.photographs.trunk_features import Cells

# The within-class covariance is too thin for so many features: its mean variance is added to each.
# Fewer views of each name need a larger share.
_SHRINKAGE = 1.0
# Coarse cells name less precisely: mIoU of both is best when they count half of the fine ones.
_COARSE_SCALE = 0.6
_CHUNK = 8192
# Width of the kernel between names of ImageNet's classes.
_CLASS_KERNEL = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over cells that discriminants are fitted from; the sums of two sets of cells add up.

    Attributes:
        count_K: Cells of each name.
        sum_2KF: float64; sum of each name's cells, fine and coarse.
        product_2FF: float64; sum of the outer products of all cells, likewise.
    """

    count_K: NDArray[np.int64]
    sum_2KF: NDArray[np.float64]
    product_2FF: NDArray[np.float64]

    @classmethod
    def of(cls, cells: Cells, num_names: int) -> Self:
        """Sum cells of `num_names` names, which are widened in chunks."""
        width, name_n = cells.cells_n2F.shape[2], cells.name_n
        sum_2KF, product_2FF = np.zeros((2, num_names, width)), np.zeros((2, width, width))
        for start in range(0, len(name_n), _CHUNK):
            part = slice(start, start + _CHUNK)
            chunk_n2F = cells.cells_n2F[part].astype(np.float32)
            for scale in range(2):
                np.add.at(sum_2KF[scale], name_n[part], chunk_n2F[:, scale])
                product_2FF[scale] += chunk_n2F[:, scale].T @ chunk_n2F[:, scale]
        count_K = np.bincount(name_n, minlength=num_names)
        return cls(count_K=count_K, sum_2KF=sum_2KF, product_2FF=product_2FF)

    def __add__(self, other: Self) -> Self:
        return replace(
            self,
            count_K=self.count_K + other.count_K,
            sum_2KF=self.sum_2KF + other.sum_2KF,
            product_2FF=self.product_2FF + other.product_2FF,
        )

    def mean(self) -> NDArray[np.float64]:
        """Mean of all cells, [2, F]."""
        mean_2F: NDArray[np.float64] = self.sum_2KF.sum(1) / max(int(self.count_K.sum()), 1)
        return mean_2F


@dataclass(frozen=True, slots=True, kw_only=True)
class Discriminant:
    """Linear discriminant analysis of cells.

    Attributes:
        mean_F: Mean of the names' means.
        whitening_FF: Columns are whitened features: `(x - mean_F) @ whitening_FF`.
        means_KF: Whitened mean of each name; zeros for a name without cells.
    """

    mean_F: NDArray[np.float32]
    whitening_FF: NDArray[np.float32]
    means_KF: NDArray[np.float32]


def fit_discriminant(moments: Moments, scale: int) -> Discriminant:
    """Whiten features by the covariance within names; scale 0 is fine, 1 coarse."""
    count_K1 = moments.count_K[:, None]
    means_KF = moments.sum_2KF[scale] / np.maximum(count_K1, 1)
    within_FF = moments.product_2FF[scale] - (means_KF * count_K1).T @ means_KF
    within_FF /= count_K1.sum()
    within_FF[np.diag_indices_from(within_FF)] += _SHRINKAGE * within_FF.trace() / len(within_FF)
    whitening_FF = np.linalg.inv(np.linalg.cholesky(within_FF)).T
    has_cells_K1 = count_K1 > 0
    mean_F = means_KF[has_cells_K1[:, 0]].mean(0)
    whitened_KF = (means_KF - mean_F) @ whitening_FF * has_cells_K1
    return Discriminant(
        mean_F=mean_F.astype(np.float32),
        whitening_FF=np.ascontiguousarray(whitening_FF, np.float32),
        means_KF=whitened_KF.astype(np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingSpace:
    """The first space: `(fine - mean) @ fine_DF.T + (coarse - mean) @ coarse_DF.T`, of unit length.

    `names_KD` are the names' own vectors, of unit length.
    """

    fine_DF: NDArray[np.float32]
    coarse_DF: NDArray[np.float32]
    fine_mean_F: NDArray[np.float32]
    coarse_mean_F: NDArray[np.float32]
    names_KD: NDArray[np.float32]


def join(fine: Discriminant, coarse: Discriminant, width: int) -> DrawingSpace:
    """Reduce both scales to the `width` directions in which the names differ most."""
    both_KG = np.concatenate([fine.means_KF, _COARSE_SCALE * coarse.means_KF], axis=1)
    # Every name counts alike, however far its mean lies from the others.
    _, _, axes = np.linalg.svd(l2_normalize(both_KG), full_matrices=False)
    split = fine.means_KF.shape[1]
    fine_DF = axes[:width, :split] @ fine.whitening_FF.T
    coarse_axes_DF = np.asarray(_COARSE_SCALE * axes[:width, split:], np.float32)
    coarse_DF = coarse_axes_DF @ coarse.whitening_FF.T
    return DrawingSpace(
        fine_DF=fine_DF,
        coarse_DF=coarse_DF,
        fine_mean_F=fine.mean_F,
        coarse_mean_F=coarse.mean_F,
        names_KD=l2_normalize(both_KG @ axes[:width].T),
    )


def merged(names_KD: NDArray[np.float32], groups: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """One unit vector for each group of names: the direction of their mean."""
    return l2_normalize(np.stack([names_KD[list(group)].sum(0) for group in groups]))


def class_axes(classes_CE: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Axes [D2, C] that keep apart classes with unlike names; orthonormal.

    Args:
        classes_CE: MiniLM's embeddings of the names, of unit length.
        width: D2.
    """
    kernel_CC = np.exp((classes_CE @ classes_CE.T - 1) / _CLASS_KERNEL)
    # Centred, because probabilities add up to one: what all classes share tells none apart.
    kernel_CC -= kernel_CC.mean(0) + kernel_CC.mean(1)[:, None] - kernel_CC.mean()
    _, vectors_CC = np.linalg.eigh(kernel_CC)
    return np.ascontiguousarray(vectors_CC[:, ::-1][:, :width].T, np.float32)


def class_names(
    members: Sequence[Sequence[int]], axes_DC: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Vectors [K, D2] of names that stand for one class of ImageNet or several."""
    weights_KC = np.zeros((len(members), axes_DC.shape[1]), np.float32)
    for row, classes in enumerate(members):
        weights_KC[row, list(classes)] = 1
    return l2_normalize(l2_normalize(weights_KC) @ axes_DC.T)
