"""Trains a small text tower to predict the embeddings of all-MiniLM-L6-v2 (Apache-2.0).

A randomly initialised tower gives all names nearly the same vector, and learns only the names of
the training data. After this warm-up, vectors of unrelated words are distinct from the start.

Shapes: C texts, L tokens, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Tipsv2Model, Tipsv2Tokenizer

from model.features import text_features
from training.data.batch import tokenize
from training.pretrained.image_backbone import fit_basis
from training.pretrained.weights import MINILM, weights_file

_BATCH = 128


def package_folder() -> Path:
    """The folder of MiniLM's weights and tokenizer."""
    return weights_file(MINILM).parent


@torch.inference_mode()
def sentence_embeddings(texts: Sequence[str]) -> Tensor:
    """Embed texts with MiniLM: masked mean of the last layer, [C, 384], not normalised."""
    folder = package_folder()
    network = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = []
    for i in range(0, len(texts), _BATCH):
        encoded = tokenizer(
            list(texts[i : i + _BATCH]), padding=True, truncation=True, return_tensors="pt"
        )
        tokens = network(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None]
        rows.append((tokens * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


def warm_up_text_tower(
    model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    texts: Sequence[str],
    *,
    num_steps: int,
    seed: int,
) -> float:
    """Regress a model's text tower to MiniLM's embeddings of texts, in place.

    Returns:
        The mean cosine with the targets over the last fifty steps, of 128 texts each.
    """
    sentences_CF = sentence_embeddings(texts)
    basis = fit_basis(sentences_CF, model.text_model.config.hidden_size)
    targets_CD = F.normalize(basis.reduce(sentences_CF), dim=-1)
    batch = tokenize(tokenizer, texts)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.text_model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    cosines = []
    for _ in range(num_steps):
        rows = torch.randint(len(texts), (_BATCH,), generator=generator)
        length = int(batch.mask_BL[rows].sum(1).max())
        embedded = text_features(
            model, batch.token_ids_BL[rows, :length], batch.mask_BL[rows, :length]
        )
        cosine = F.cosine_similarity(embedded, targets_CD[rows]).mean()
        optimizer.zero_grad()
        (1 - cosine).backward()
        optimizer.step()
        schedule.step()
        cosines.append(float(cosine.detach()))
    return sum(cosines[-50:]) / len(cosines[-50:])
