"""Strictness: every tensor of a file must be understood, every tensor of a model must be found."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from maskformer_fast.checkpoints.names import NameTable
from maskformer_fast.checkpoints.tables import FORMATS

SHOWN = 5  # names in an error message


def translate(tensors: Mapping[str, Tensor], table: NameTable, source: str) -> dict[str, Tensor]:
    """Tensors of the table's format under our names.

    Errors: ValueError with the names that the table does not know.
    """
    ours, left_over = table.to_ours(tensors)
    if left_over:
        raise ValueError(
            f"{source}: read as {table.format} weights, but with left-over names "
            f"{first_few(left_over)}; {nearest_format(tensors)}"
        )
    return ours


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies the tensors (our names) into the module.

    Errors: ValueError with what is missing, left over, or of another shape.
    """
    expected = module.state_dict()
    shapes = [
        f"{name} (expected {list(expected[name].shape)}, got {list(tensor.shape)})"
        for name, tensor in tensors.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "left over": [name for name in tensors if name not in expected],
        "of another shape": shapes,
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {first_few(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{source}: does not fit the model; {told}; {nearest_format(tensors)}")
    module.load_state_dict(dict(tensors))


def first_few(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


def nearest_format(names: Collection[str]) -> str:
    known, table = max(((table.known(names), table) for table in FORMATS), key=lambda kt: kt[0])
    return f"nearest format: {table.format} ({known} of {len(names)} names)"
