"""Loss terms that pretraining and distillation share: captions, names in patches, a backbone.

Each term is this rank's share: the mean over the ranks is the value for the global batch.

Captions are contrasted over all micro-batches of a step. With several of them, each is embedded
once without gradient; the contrast of all embeddings gives the gradient of each one; and the
micro-batch's own forward pass, which is made again, takes that gradient from there (GradCache,
arXiv:2101.06983). The whole is the gradient of one large batch.

A small data set has few drawings and few styles. A frozen network trained on a million photos gives
targets for every patch, also of thousands of drawings without a class name. Not part of TIPSv2,
which has no shortage of images.

Shapes: B batch, N patches, L tokens, T captioned images, G those of all ranks, U names, V those
of all ranks, D width, F = 4 D, K the backbone's reduced width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import VisionTokens, text_features
from training.data.batch import Batch, TextBatch, UnnamedDrawings
from training.distributed import gather_rows, num_ranks, sum_over_ranks
from training.heads import NameContrast
from training.losses.contrastive import contrastive_loss
from training.losses.fine_grained import patch_name_parts

MIN_TEMPERATURE = 0.001
"""Not published. CLIP's bound of 0.01 (arXiv:2103.00020) is twice what the released B/14 has
learnt, so TIPSv2 had none or a lower one; this value has no effect in practice."""


NUM_SHOWN = 4
"""Patches that must show each name."""


def embed_texts(model: Tipsv2Model, texts: TextBatch) -> Tensor:
    """Text embeddings [B, D], not normalised."""
    token_ids_BL, mask_BL = texts.token_ids_BL, texts.mask_BL
    if len(texts) == 0:
        # The tower takes no empty batch, and every rank must use the same parameters.
        token_ids_BL, mask_BL = token_ids_BL.new_zeros((1, 1)), mask_BL.new_ones((1, 1))
    return text_features(model, token_ids_BL, mask_BL)[: len(texts)]


def caption_terms(
    model: Tipsv2Model, features: VisionTokens, batch: Batch, temperature: Tensor
) -> dict[str, Tensor]:
    """InfoNCE of CLS1 with the short and of CLS2 with the long captions, over the global batch.

    Images without captions have no row. If no rank has a captioned image, there are no terms.
    """
    if sum_over_ranks([len(batch.cls1)]) == [0]:
        return {}
    rows_TF = embed_captions(model, features, batch)
    return _contrast(rows_TF, batch.cls1_ids_T, batch.cls2_ids_T, temperature)


def embed_captions(model: Tipsv2Model, features: VisionTokens, batch: Batch) -> Tensor:
    """CLS1, its caption, CLS2 and its caption of each captioned image, float32 [T, F]."""
    # Selection by a mask makes the host wait for the device.
    is_whole = len(batch.cls1) == len(batch.captioned_B)
    captioned = slice(None) if is_whole else batch.captioned_B
    return torch.cat(
        [
            part_TD.float()
            for part_TD in (
                features.cls1_BD[captioned],
                embed_texts(model, batch.cls1),
                features.cls2_BD[captioned],
                embed_texts(model, batch.cls2),
            )
        ],
        dim=1,
    )


def _contrast(
    rows_TF: Tensor, ids1_T: Tensor, ids2_T: Tensor, temperature: Tensor
) -> dict[str, Tensor]:
    (rows_GF, ids1_G, ids2_G), own = gather_rows(rows_TF, ids1_T, ids2_T)
    images1_GD, texts1_GD, images2_GD, texts2_GD = rows_GF.chunk(4, dim=1)
    rows = None if num_ranks() == 1 else own
    cls1 = contrastive_loss(images1_GD, texts1_GD, temperature, ids1_G, rows=rows)
    cls2 = contrastive_loss(images2_GD, texts2_GD, temperature, ids2_G, rows=rows)
    return {"cls1": cls1 * num_ranks(), "cls2": cls2 * num_ranks()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContrastShare:
    """What one micro-batch gets from the contrast of all captions of its step.

    Attributes:
        terms: "cls1" and "cls2" of the whole step, without gradient.
        rows_gradient_TF: Of the terms' mean, times the number of micro-batches, by the rows.
        temperature_gradient: Of the terms' mean by the logarithm of the temperature.
    """

    terms: dict[str, Tensor]
    rows_gradient_TF: Tensor
    temperature_gradient: Tensor

    def replay(self, rows_TF: Tensor, log_temperature: Tensor) -> Tensor:
        """The mean of the terms; its gradient is this micro-batch's share of the step's."""
        linear = (rows_TF * self.rows_gradient_TF).sum()
        linear = linear + log_temperature * self.temperature_gradient
        return linear - linear.detach() + (self.terms["cls1"] + self.terms["cls2"]) / 2


def contrast_step(
    rows: Sequence[Tensor], ids1_T: Tensor, ids2_T: Tensor, log_temperature: Tensor
) -> list[ContrastShare] | None:
    """Contrast the captions of all micro-batches of a step, over all ranks.

    Args:
        rows: Of `embed_captions`, without gradient, of each micro-batch.
        ids1_T: Of the captions for CLS1 in all micro-batches, in the same order.
        ids2_T: Of those for CLS2.
        log_temperature: The learnt one.

    Returns:
        The share of each micro-batch; None if no rank has a captioned image.
    """
    if sum_over_ranks([sum(len(part) for part in rows)]) == [0]:
        return None
    leaves = [part.detach().requires_grad_() for part in rows]
    learnt = log_temperature.detach().requires_grad_()
    terms = _contrast(torch.cat(leaves), ids1_T, ids2_T, learnt.exp())
    mean = (terms["cls1"] + terms["cls2"]) / 2
    *gradients, by_temperature = torch.autograd.grad(mean, [*leaves, learnt])
    return [
        ContrastShare(
            terms={name: term.detach() for name, term in terms.items()},
            rows_gradient_TF=gradient * len(rows),
            temperature_gradient=by_temperature,
        )
        for gradient in gradients
    ]


def name_term(
    model: Tipsv2Model, features: VisionTokens, batch: Batch, contrast: NameContrast
) -> Tensor:
    """Patch-name contrast of this rank's images with the names of the global batch.

    Images whose captions contain no known name are left out.
    """
    names_VD, present_BV = _all_names(embed_texts(model, batch.names), batch)
    patches_BND = features.patches_BND
    named_B = present_BV.any(1)
    counts = [int(named_B.sum()), int(present_BV.sum())]
    totals = sum_over_ranks(counts)
    if not named_B.any():
        return names_VD.sum() * 0  # the other ranks wait in the backward pass of the gathering
    if not named_B.all():
        patches_BND, present_BV = patches_BND[named_B], present_BV[named_B]
    stray, hidden_P = patch_name_parts(
        patches_BND,
        names_VD,
        present_BV,
        scale=contrast.scale(),
        nothing=contrast.nothing,
        num_shown=min(NUM_SHOWN, patches_BND.shape[1]),
    )
    return stray * _share(counts[0], totals[0]) + hidden_P.mean() * _share(counts[1], totals[1])


def _share(count: int, total: int) -> float:
    """Factor from a rank's mean over `count` items to its share of the global mean."""
    return count * num_ranks() / total


def _all_names(names_UD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The distinct names of all ranks, and which of them this rank's images have."""
    if num_ranks() == 1:
        return names_UD, batch.present_BU
    (names_GD, ids_G), own = gather_rows(names_UD.float(), batch.name_ids_U)
    ids_V, column_G = ids_G.unique(return_inverse=True)
    position_G = torch.arange(len(ids_G), device=ids_G.device)
    first_V = position_G.new_full((len(ids_V),), len(ids_G))
    first_V = first_V.scatter_reduce(0, column_G, position_G, "amin")
    present_BV = batch.present_BU.new_zeros((len(batch.present_BU), len(ids_V)))
    present_BV[:, column_G[own]] = batch.present_BU
    return names_GD[first_V], present_BV


TARGET_WIDTH = 256
"""K: numbers per patch that the student learns, reduced from the backbone's 1280."""


def image_backbone_term(patches_BND: Tensor, cells_BNK: Tensor, projection: nn.Linear) -> Tensor:
    """One minus the cosine of projected patches with the backbone's, plus that of the means."""
    projected_BNK = projection(patches_BND).float()
    patch_BN = F.cosine_similarity(projected_BNK, cells_BNK, dim=-1)
    whole_B = F.cosine_similarity(projected_BNK.mean(1), cells_BNK.mean(1), dim=-1)
    return (1 - patch_BN.mean()) + (1 - whole_B.mean())


def title_term(
    model: Tipsv2Model, tokens: VisionTokens, drawings: UnnamedDrawings, temperature: Tensor
) -> Tensor:
    """InfoNCE of CLS1 with the titles over the global batch; 0 if no rank has a title."""
    if sum_over_ranks([len(drawings.titles)]) == [0]:
        return tokens.cls1_BD.new_zeros(())
    texts_TD = embed_texts(model, drawings.titles)
    rows_TF = torch.cat([tokens.cls1_BD[drawings.titled_E].float(), texts_TD.float()], dim=1)
    (rows_GF, ids_G), own = gather_rows(rows_TF, drawings.title_ids_T)
    images_GD, texts_GD = rows_GF.chunk(2, dim=1)
    rows = None if num_ranks() == 1 else own
    return contrastive_loss(images_GD, texts_GD, temperature, ids_G, rows=rows) * num_ranks()
