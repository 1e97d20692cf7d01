"""Do two models' units correspond by index?  Those of a base and its fine-tune do: same architecture, layers, widths.

Text is read by the base's tokenizer.  The fine-tune's is the same, or has tokens added: then shared ids are compared.
"""

from universal_neurons.errors import CorrespondenceError, TokenizerError
from universal_neurons.models import Model, added_tokens, tokenizer_difference

SHOWN = 5


def require_correspondence(base: Model, other: Model) -> list[str]:
    """Notes on what of a model has no part in the comparison with its base.

    Raises `CorrespondenceError` where units do not correspond by index, and `TokenizerError` where the base's tokenizer
    is no part of the other's.  One with added tokens is given the base's tokenizer.
    """
    if _shape(base) != _shape(other):
        raise CorrespondenceError(
            f"the units of {other.name} and {base.name} do not correspond by index",
            given=_described(other),
            wanted=f"{_described(base)}, as {base.name}",
            fix="compare models of different shapes with `uneurons run`",
        )
    if base.tokenizer is None or other.tokenizer is None:
        return []
    added = added_tokens(base.tokenizer, other.tokenizer)
    if added is None:
        raise TokenizerError(
            f"the tokenizers of {base.name} and {other.name} differ",
            given=f"of both in this order, {tokenizer_difference(base.tokenizer, other.tokenizer)}",
            wanted="the same tokenizer, or the base's with tokens added",
            fix="compare models of different tokenizers with `uneurons run`",
        )
    if not added:
        return []
    other.tokenizer = base.tokenizer
    more = f" and {len(added) - SHOWN} more" if len(added) > SHOWN else ""
    names = ", ".join(map(repr, added[:SHOWN]))
    return [f"{other.name}: tokens that {base.name} has not are not read: {names}{more}"]


def _shape(model: Model) -> tuple[object, ...]:
    return model.architecture.name, model.units.widths, model.d_model


def _described(model: Model) -> str:
    widths = ", ".join(map(str, sorted(set(model.units.widths))))
    return f"{model.architecture.name}, {model.n_layers} layers of {widths} units, d_model {model.d_model}"
