"""Name tables: how another format's tensor names correspond to ours, as pairs of patterns.

A rule is (ours, theirs). In both, `#` stands for an index that is carried over and `{a,b}` for
alternatives, which pair up in order; the last word of a name (weight, bias, ...) is carried over.
Where one side has n times the alternatives of the other, its n tensors are the other's one,
concatenated along the first dimension:

    ("attention.{q,k,v}.", "in_proj_")    q.weight, k.weight, v.weight  <->  in_proj_weight
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]
INDEX = r"(\d+)"
LAST_WORD = r"(\w*)"  # no dot: "conv1." is not the beginning of "conv1.norm.weight"


def alternatives(pattern: str) -> list[str]:
    """ "a{b,c}.#." -> ["ab.#.", "ac.#."]"""
    parts = re.split(r"\{(.*?)\}", pattern)  # literals at even places, alternatives at odd ones
    choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(INDEX.join(map(re.escape, pattern.split("#"))) + LAST_WORD)


def fill(pattern: str, found: Iterable[str]) -> str:
    """Puts indices and the last word, as `matcher` found them, into another pattern."""
    *indices, last_word = found
    literals = pattern.split("#")
    return "".join(a + b for a, b in zip(literals, [*indices, last_word], strict=True))


def prefixed(rules: Rules, ours: str, theirs: str) -> Rules:
    return tuple((ours + a, theirs + b) for a, b in rules)


@dataclass(frozen=True)
class NameTable:
    """One format: its rules, and a regular expression of names that carry no information."""

    format: str
    rules: Rules
    ignored: str

    def to_ours(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors under our names, and the names that no rule knows."""
        kept = {k: v for k, v in tensors.items() if not re.search(self.ignored, k)}
        return rename(kept, tuple((theirs, ours) for ours, theirs in self.rules))

    def from_ours(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors under their names, and the names that no rule knows."""
        return rename(tensors, self.rules)

    def known(self, names: Iterable[str]) -> int:
        """How many of `names` belong to this format."""
        return sum(bool(self._any.fullmatch(name)) for name in names)

    @cached_property
    def _any(self) -> re.Pattern[str]:
        theirs = (one for _, pattern in self.rules for one in alternatives(pattern))
        return re.compile("|".join(matcher(one).pattern for one in theirs))


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Applies (from, to) rules; returns the renamed tensors and the names that no rule took."""
    left = dict(tensors)
    renamed = {}
    for source, target in rules:
        sources, targets = alternatives(source), alternatives(target)
        groups = min(len(sources), len(targets))
        for group in range(groups):
            parts = sources[group * len(sources) // groups : (group + 1) * len(sources) // groups]
            pieces = targets[group * len(targets) // groups : (group + 1) * len(targets) // groups]
            first = matcher(parts[0])
            for found in [m for m in map(first.fullmatch, list(left)) if m]:
                names = [fill(part, found.groups()) for part in parts]
                if any(name not in left for name in names):
                    continue  # an incomplete stack stays left over, and is reported as such
                taken = [left.pop(name) for name in names]
                tensor = torch.cat(taken) if len(taken) > 1 else taken[0]
                for piece, part in zip(pieces, tensor.chunk(len(pieces)), strict=True):
                    renamed[fill(piece, found.groups())] = part
    return renamed, list(left)
