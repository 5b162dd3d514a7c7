"""What a network learns from labels and from a teacher. Logits and probabilities are [batch, classes], in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 1.0
"""alpha of the divergence is the better of -ALPHA and +ALPHA (AlphaNet, arXiv:2102.07954, section 3.2)."""

CLIP = 5.0
"""Bound of the importance weight (p / q)^alpha (the same, Eq. 5 and its text)."""


def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy per image [batch]. labels: classes [batch], or probabilities [batch, classes] of mixed images,
    which are smoothed already."""
    if labels.ndim == 2:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")


def kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy per image [batch] to a teacher's probabilities: KL(teacher || network) but for a constant."""
    return F.cross_entropy(logits, teacher, reduction="none")


def alpha_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Adaptive alpha-divergence per image [batch] (AlphaNet, arXiv:2102.07954, Eq. 3 to 6): of the two divergences
    with alpha = -1 and +1 the greater, so that the network neither over- nor underestimates the teacher's doubt.

    Its gradient is that of the divergence with the importance weights clipped; its value is a surrogate with that
    gradient.
    """
    log_q = F.log_softmax(logits, dim=1)
    candidates = [_alpha(log_q, teacher, alpha) for alpha in (-ALPHA, ALPHA)]
    values = torch.stack([value for value, _ in candidates])
    surrogates = torch.stack([surrogate for _, surrogate in candidates])
    return surrogates.gather(0, values.argmax(0, keepdim=True))[0]


def _alpha(log_q: Tensor, p: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(value [batch], surrogate [batch]) of D_alpha(p || q) = (E_q[(p / q)^alpha] - 1) / (alpha (alpha - 1)).

    The limits alpha -> 0 and 1 are KL(q || p) and KL(p || q). The gradient is -E_q[w grad log q] / alpha with
    w = (p / q)^alpha; w is clipped and taken as constant.
    """
    q = log_q.detach().exp()
    log_p = p.clamp_min(1e-8).log()
    if alpha == 1.0:
        ratio = (log_p - log_q.detach()).exp().clamp(max=CLIP)
        value = (p * (log_p - log_q.detach())).sum(1)
        return value, -(q * ratio * log_q).sum(1)
    weight = (alpha * (log_p - log_q.detach())).exp().clamp(max=CLIP)
    value = ((q * weight).sum(1) - 1) / (alpha * (alpha - 1))
    return value, -(q * weight * log_q).sum(1) / alpha
