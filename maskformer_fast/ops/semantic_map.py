"""semantic_map: the most probable class of every pixel.

    order "maskformer"     argmax_k  sum_q p[q, k] * sigmoid(upsample(x))[q]
    order "transformers"   argmax_k  upsample( sum_q p[q, k] * sigmoid(x)[q] )

p = softmax(class_logits) without "no object", x = mask_logits; upsample is bilinear
(ops/upsample.py). The first order is the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer_fast.ops import checks, compiled_maps
from maskformer_fast.ops.cuda_launch import Kernels, cuda_backends
from maskformer_fast.ops.floats import float_type
from maskformer_fast.ops.mask_logits import compiled_image as mask_logits_of_image
from maskformer_fast.ops.mask_logits import reference as mask_logits_reference
from maskformer_fast.ops.precision import ieee_float32
from maskformer_fast.ops.probabilities import class_probabilities, mask_probabilities
from maskformer_fast.ops.registry import compiled_module, register, resolve
from maskformer_fast.ops.upsample import row_bands

ORDERS = ("maskformer", "transformers")
SMALL_SUM = 0.05  # of a class's probabilities that its bounds count as a constant
BAND_BYTES = 8_000_000  # of mask logits that `semantic_map_from_features` holds
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def reference(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """Labels [B, H, W] and the winners' scores ([B, H, W], or [0] if not asked for)."""
    labels, scores = _fake(
        class_logits, mask_logits, height, width, order, region, dtype, return_scores
    )
    for image in range(len(class_logits)):
        extent = None if region is None else region[image]
        for rows, band in class_score_bands(
            class_logits[image], mask_logits[image], (height, width), order, extent
        ):
            winner_score, winner = band.max(0)
            labels[image, rows] = winner.to(dtype)
            if return_scores:
                scores[image, rows] = winner_score
    return labels, scores


def class_score_bands(
    class_logits: Tensor,  # [Q, K+1]
    mask_logits: Tensor,  # [Q, h, w]
    size: tuple[int, int],
    order: str,
    region: Tensor | None,  # [2]
) -> Iterator[tuple[slice, Tensor]]:
    """The scores of all classes in one image, a few rows at a time: (rows, [K, rows, W])."""
    class_probs = class_probabilities(class_logits)[:, :-1]
    if order == "transformers":
        yield from row_bands(_sum(class_probs, mask_probabilities(mask_logits)), size, region)
        return
    for rows, logits in row_bands(mask_logits, size, region):
        yield rows, _sum(class_probs, mask_probabilities(logits))


def _sum(class_probs: Tensor, mask_probs: Tensor) -> Tensor:
    """[Q, K] x [Q, rows, W] -> [K, rows, W]."""
    with ieee_float32(class_probs.device):
        return torch.einsum("qk,qyx->kyx", class_probs, mask_probs)


def _fake(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    shape = (class_logits.shape[0], height, width)
    compute = torch.promote_types(class_logits.dtype, torch.float32)
    labels = class_logits.new_empty(shape, dtype=dtype)
    return labels, class_logits.new_empty(shape if return_scores else (0,), dtype=compute)


def compiled(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """As `reference`, in C++: csrc/cpu/semantic_map.cpp, threads over strips of the grid."""
    labels, scores = _fake(
        class_logits, mask_logits, height, width, order, region, dtype, return_scores
    )
    mask_logits, region = compiled_maps.dense(mask_logits, region)
    rows = slice(0, mask_logits.shape[2])
    _score(_Classes.of(class_logits), mask_logits, rows, rows.stop, labels, scores, order, region)
    return labels, scores


class _Classes(NamedTuple):
    """Class probabilities as the compiled module reads them, of B images."""

    all: Tensor  # [B, K, Q]
    large: Tensor  # [B, K, Q], 0 for the others
    others: Tensor  # [B, K], the sum of the others

    @classmethod
    def of(cls, class_logits: Tensor) -> _Classes:
        probs = class_probabilities(class_logits)[..., :-1].mT.contiguous()
        return cls(probs, *_split(probs))

    def image(self, index: int) -> _Classes:
        return _Classes(*(part[index : index + 1] for part in self))


def _score(
    classes: _Classes,
    mask_logits: Tensor,  # [B, Q, the rows of the grid that `rows` says, w], contiguous
    rows: slice,
    grid_rows: int,
    labels: Tensor,
    scores: Tensor,
    order: str,
    region: Tensor,
) -> None:
    """Write the labels and scores [B, H, W] of the cells that lie between the rows."""
    images, queries, _, columns = mask_logits.shape
    inputs = compiled_maps.addresses(mask_logits, region, labels.shape[1], labels.shape[2])
    inputs["sizes"] = (images, queries, grid_rows, columns, *labels.shape[1:])
    compiled_module().semantic_map(
        **inputs,
        held_rows=(rows.start, rows.stop),
        all=classes.all.data_ptr(),
        large=classes.large.data_ptr(),
        others=classes.others.data_ptr(),
        labels=labels.data_ptr(),
        label_bytes=labels.element_size(),
        scores=scores.data_ptr() if scores.numel() else 0,
        classes=classes.all.shape[1],
        sigmoid_first=order == "transformers",
        prune=compiled_maps.PRUNE,
    )


def on_cuda(
    kernels: Kernels,
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """As `reference`, in CUDA: csrc/cuda/semantic_map.cu, a block per tile of the grid."""
    labels, scores = _fake(
        class_logits, mask_logits, height, width, order, region, dtype, return_scores
    )
    sizes, classes = (*mask_logits.shape, height, width), class_logits.shape[-1] - 1
    kernels(
        "semantic_map",
        mask_logits=mask_logits.contiguous(),
        type=float_type(mask_logits),
        region=None if region is None else region.to(torch.float64).contiguous(),
        probs=class_probabilities(class_logits).contiguous(),
        labels=labels,
        label_bytes=labels.element_size(),
        scores=scores if return_scores else None,
        sizes=sizes,
        classes=classes,
        sigmoid_first=order == "transformers",
        workspace=kernels.workspace("semantic_map", labels.device, *sizes, classes),
    )
    return labels, scores


def _split(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [B, K, Q]: the large ones, 0 elsewhere, and the sum of the others [B, K].

    A class's smallest entries are left out, while their sum stays within SMALL_SUM.
    """
    ordered = probs.sort(-1).values
    small = ordered.cumsum(-1) <= SMALL_SUM
    cutoff = torch.where(small, ordered, -1).amax(-1, keepdim=True)
    large = torch.where(probs > cutoff, probs, 0)
    return large, (probs - large).sum(-1)


_semantic_map = register(
    "semantic_map",
    "(Tensor class_logits, Tensor mask_logits, SymInt height, SymInt width, str order,"
    " Tensor? region, ScalarType dtype, bool return_scores, str backend) -> (Tensor, Tensor)",
    fake=_fake,
    backends={"reference": reference, "cpu": compiled, **cuda_backends(on_cuda)},
)


def _image_by_image(
    score: Callable[..., tuple[Tensor, Tensor]],  # `reference`, or another with its signature
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """The logits of one image by torch's product, its map by `score`, then the next image."""
    options = (height, width, order)
    labels, scores = _fake(class_logits, mask_queries, *options, region, dtype, return_scores)
    for image in range(len(class_logits)):
        one = slice(image, image + 1)
        logits = mask_logits_reference(mask_queries[one], pixel_features[one], False)
        extent = None if region is None else region[one]
        labels[one], found = score(
            class_logits[one], logits, *options, extent, dtype, return_scores
        )
        if return_scores:
            scores[one] = found
    return labels, scores


def from_features_on_cuda(kernels: Kernels, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _image_by_image(functools.partial(on_cuda, kernels), *arguments)


def compiled_from_features(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    height: int,
    width: int,
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """As `compiled`, with the mask logits of a band of grid rows at a time, of BAND_BYTES."""
    labels, scores = _fake(
        class_logits, mask_queries, height, width, order, region, dtype, return_scores
    )
    region = compiled_maps.dense_region(region, pixel_features)
    classes = _Classes.of(class_logits)
    queries, (grid_rows, columns) = mask_queries.shape[1], pixel_features.shape[2:]
    step = max(1, BAND_BYTES // (queries * columns * mask_queries.element_size()))
    memory = mask_queries.new_empty(0)  # of a band's logits, for all bands
    for image in range(len(class_logits)):
        one = slice(image, image + 1)
        outputs = (labels[one], scores[one] if return_scores else scores)
        for start in range(0, max(grid_rows - 1, 1), step):
            rows = slice(start, min(start + step + 1, grid_rows))  # to the next band's first
            logits = memory.resize_(1, queries, rows.stop - start, columns)
            mask_logits_of_image(
                mask_queries[image], pixel_features[image, :, rows], logits[0], False
            )
            _score(classes.image(image), logits, rows, grid_rows, *outputs, order, region[one])
    return labels, scores


def _fake_from_features(
    class_logits: Tensor, mask_queries: Tensor, pixel_features: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return _fake(class_logits, mask_queries, *options)


_from_features = register(
    "semantic_map_from_features",
    "(Tensor class_logits, Tensor mask_queries, Tensor pixel_features, SymInt height,"
    " SymInt width, str order, Tensor? region, ScalarType dtype, bool return_scores, str backend)"
    " -> (Tensor, Tensor)",
    fake=_fake_from_features,
    backends={
        "reference": functools.partial(_image_by_image, reference),
        "cpu": compiled_from_features,
        **cuda_backends(from_features_on_cuda),
    },
)


def semantic_map(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    order: str = "maskformer",
    region: Tensor | None = None,
    dtype: torch.dtype = torch.int64,
    return_scores: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The class of every pixel, straight from the queries; ties go to the lowest class.

    class_logits  [B, Q, K+1]   float32, float16, bfloat16 (float64: reference), Q >= 1
    mask_logits   [B, Q, h, w]  same dtype and device
    size          (H, W) of the map
    order         "maskformer" or "transformers": formulas above
    region        [B, 2] float32 or float64: rows and columns of the mask grid, in cells from its
                  top-left, that the unpadded image covers, 0 < r <= h; None: all of it
    dtype         of the labels: int64, int32, int16, int8 or uint8, able to hold K-1
    returns       labels [B, H, W]; with `return_scores` also the winner's score [B, H, W],
                  float32 (float64 for float64 inputs)

    Sums are float32. A probability that is NaN counts as 0. No gradient. Neither the Q nor the K
    full-size maps are stored. Raises TypeError or ValueError naming the argument that is off.
    """
    sizes = checks.predictions(class_logits, mask_logits, region)
    options = _checked_options(sizes, size, order, region, dtype, return_scores)
    chosen = resolve("semantic_map", backend, mask_logits.device.type, mask_logits.dtype)
    labels, scores = _semantic_map(class_logits.detach(), mask_logits.detach(), *options, chosen)
    return (labels, scores) if return_scores else labels


def semantic_map_from_features(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    size: tuple[int, int],
    *,
    order: str = "maskformer",
    region: Tensor | None = None,
    dtype: torch.dtype = torch.int64,
    return_scores: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`semantic_map` of `mask_logits(mask_queries [B, Q, C], pixel_features [B, C, h, w])`.

    Those of one image are held at a time; on the CPU, with the compiled module, 8 MB of them.
    """
    sizes = checks.prediction_features(class_logits, mask_queries, pixel_features, region)
    options = _checked_options(sizes, size, order, region, dtype, return_scores)
    inputs = (class_logits.detach(), mask_queries.detach(), pixel_features.detach())
    chosen = resolve(
        "semantic_map_from_features", backend, class_logits.device.type, class_logits.dtype
    )
    labels, scores = _from_features(*inputs, *options, chosen)
    return (labels, scores) if return_scores else labels


def _checked_options(
    sizes: checks.Sizes,
    size: tuple[int, int],
    order: str,
    region: Tensor | None,
    dtype: torch.dtype,
    return_scores: bool,
) -> tuple[int, int, str, Tensor | None, torch.dtype, bool]:
    """The options in the order of the ops' schemas."""
    height, width = checks.output_size(size)
    checks.one_of("order", order, ORDERS)
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"dtype: expected one of {LABEL_DTYPES}, got {dtype}")
    if sizes["K+1"] - 2 > torch.iinfo(dtype).max:
        raise ValueError(
            f"dtype: expected one that holds K-1 = {sizes['K+1'] - 2}, got {dtype}"
            f" (up to {torch.iinfo(dtype).max})"
        )
    return height, width, order, region, dtype, return_scores
