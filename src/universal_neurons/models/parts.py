"""A running network's parts, by the attribute paths that its family's row gives."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def module_at(root: Any, path: str | None) -> Any:
    """The submodule at an attribute path, `None` where a part is missing or there is no path."""
    if path is None:
        return None
    for part in path.split("."):
        root = getattr(root, part, None)
        if root is None:
            return None
    return root


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A projection's weight as (outputs, inputs); GPT-2 stores the transpose."""
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight
