"""Focal terms of a mask logit, shared by the references of matching_cost and mask_loss.

    pos(x) = alpha     (1 - s)^gamma softplus(-x)       cost of a pixel inside the target
    neg(x) = (1-alpha)     s^gamma   softplus(x)        cost of a pixel outside it
    s = sigmoid(x);  1 - s = exp(-softplus(x)),  s = exp(-softplus(-x))

(Lin et al., "Focal Loss for Dense Object Detection", 2017.)
"""

import torch
import torch.nn.functional as F


def focal_terms(
    x: torch.Tensor, alpha: float, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pos, neg and s of logits `x`, elementwise, in the dtype of `x`.

    The powers are taken as exp(-gamma softplus), whose derivative is finite for every gamma >= 0.
    """
    softplus_neg, softplus_pos = -F.logsigmoid(x), -F.logsigmoid(-x)
    pos = alpha * torch.exp(-gamma * softplus_pos) * softplus_neg
    neg = (1 - alpha) * torch.exp(-gamma * softplus_neg) * softplus_pos
    return pos, neg, torch.sigmoid(x)


def focal_derivatives(
    x: torch.Tensor, alpha: float, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """d pos / dx, d neg / dx and d s / dx of logits `x`, elementwise.

    d pos / dx = -alpha     (1 - s)^gamma (gamma s       softplus(-x) + 1 - s)
    d neg / dx = (1-alpha)      s^gamma   (gamma (1 - s) softplus(x)  + s)
    d s   / dx = s (1 - s)
    """
    softplus_neg, softplus_pos = -F.logsigmoid(x), -F.logsigmoid(-x)
    s, rest = torch.sigmoid(x), torch.sigmoid(-x)
    pos = -alpha * torch.exp(-gamma * softplus_pos) * (gamma * s * softplus_neg + rest)
    neg = (1 - alpha) * torch.exp(-gamma * softplus_neg) * (gamma * rest * softplus_pos + s)
    return pos, neg, s * rest
