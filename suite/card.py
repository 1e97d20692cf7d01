"""The model card of a suite, from its recipe, its sources and what was measured."""

from typing import Any

HEADER = """---
license: other
language: [en, de, fr]
library_name: transformers
tags: [interpretability, gpt2]
---

# {title}

{what}

    MODEL/              Hugging Face folders: float16 safetensors, configuration
    MODEL/step-K/       checkpoints of training, of some
    tokenizer/          the tokenizer of all of them
    heldout.jsonl.xz    documents that training left out, {{"text": …, "subset": …}} a line
    token_counts.csv    how often each token occurs in the text that was trained on
    suite.json          the recipe, the sources with their hashes, SHA-256 of every file, everything measured

The models exist to be compared; they are good for nothing else.
"""


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_card(recipe: dict, sources: list[dict], measured: dict[str, Any], device: str | None = None) -> str:
    """The model card in Markdown, from the recipe, what was measured, and the GPU that it was trained on, if any."""
    parts = [HEADER.format(title=recipe["title"], what=_models(recipe)), _training(recipe, device)]
    parts += [_text(sources), _losses(recipe, measured["losses"]), _universality(measured)]
    return "\n".join([*parts, _growth(measured["growth"])] if measured["growth"] else parts)


def _models(recipe: dict) -> str:
    m = recipe["model"]
    act = {"gelu_new": "GELU", "relu": "ReLU", "relu2": "squared ReLU"}[m["activation_function"]]
    return (
        f"{len(recipe['seeds'])} GPT-2 models of {m['n_layer']} layers, width {m['n_embd']}, {m['n_head']} heads, "
        f"{m['n_inner']} neurons ({act}) a layer, context {m['n_positions']}, vocabulary {m['vocab_size']}, trained by "
        "one recipe; initial weights and the order of the data differ as said below." + _bundled(recipe)
    )


def _bundled(recipe: dict) -> str:
    models = recipe.get("bundle", {}).get("models")
    return f" Here are {', '.join(models)}; the others were measured too." if models else ""


def _training(recipe: dict, device: str | None) -> str:
    t, m = recipe["training"], recipe["model"]
    precision = t["dtype"] + (f" on an {device}" if device else "")
    tokens = t["steps"] * t["rows"] * m["n_positions"]
    seeds = [
        [seed["name"], seed["weights"], seed["data"], ", ".join(f"{k} {v}" for k, v in seed.get("model", {}).items())]
        for seed in recipe["seeds"]
    ]
    return f"""## Training

{t["steps"]:,} steps of {t["rows"]} rows of {m["n_positions"]} tokens ({tokens / 1e6:.1f} M tokens a model), AdamW
(β {t["betas"][0]}, {t["betas"][1]}; weight decay {t["weight_decay"]} on matrices), learning rate up to {t["peak"]:g} in
{t["warmup"]} steps, then a cosine down to {t["final"]:.0%} of it; gradients clipped to length {t["clip"]:g}; dropout
{m["resid_pdrop"]:g}; {precision}. Weights rounded to float16 afterwards. The tokenizer is a byte-level BPE trained
on the training text; `<|endoftext|>` (id 0) is BOS, EOS and padding.

{table(["model", "seed of the weights", "seed of the data's order", "otherwise"], seeds)}
"""


def _text(sources: list[dict[str, Any]]) -> str:
    rows = [
        [
            source["subset"],
            f"{source['registry']} `{source['package']}` {source['version']}",
            source["licence"],
            f"{source['documents']:,}",
            f"{source['characters'] / 1e6:.1f}",
        ]
        for source in sources
    ]
    return f"""## Text

A document is held out (5 %) where the SHA-1 of its text, as an integer, is divisible by 20.

{table(["subset", "package", "licence", "documents", "M characters"], rows)}
"""


def _losses(recipe: dict, losses: dict[str, dict[str, float]]) -> str:
    names = [seed["name"] for seed in recipe["seeds"]]
    subsets = list(losses[names[0]])
    rows = [[subset, *(f"{losses[name][subset]:.3f}" for name in names)] for subset in subsets]
    return f"""## Held-out loss

Nats per token.

{table(["subset", *names], rows)}
"""


def _universality(measured: dict[str, Any]) -> str:
    head = ["model", "universal", "on held-out rows", "per layer", "dead", "median excess", "p99"]
    sets = [f"**{name}**\n\n{table(head, _counts(models))}\n" for name, models in measured["sets"].items()]
    suite = next(iter(measured["sets"].values()))
    return f"""## Universal neurons

Excess correlation above 0.5 (Gurnee et al., 2024), each model of a set against all others of the set,
{measured["tokens"]:,} held-out tokens. On held-out rows: the number there [surely, possibly: where the 95 % interval
lies above 0.5, or reaches it].

{chr(10).join(sets)}
Families in the first set, universal / all:

{table(["family", *suite], _families(suite))}
"""


def _counts(models: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            name,
            f"{one['universal']} of {one['neurons']} = {one['universal'] / one['neurons']:.1%}",
            f"{one['universal_heldout']} [{one['universal_surely']}, {one['universal_possibly']}]",
            " ".join(map(str, one["universal_per_layer"])),
            one["dead"],
            f"{one['excess_median']:.3f}",
            f"{one['excess_p99']:.3f}",
        ]
        for name, one in models.items()
    ]


def _families(models: dict[str, Any]) -> list[list[str]]:
    counts = [one["families"] for one in models.values()]
    names = sorted({family for one in counts for family in one["all"]})
    return [
        [name.replace("_", " "), *(f"{one['universal'].get(name, 0)} / {one['all'].get(name, 0)}" for one in counts)]
        for name in names
    ]


def _growth(growth: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{row['step']:,}",
            f"{row['tokens'] / 1e6:.2f}",
            f"{row['universal']} [{row['surely']}, {row['possibly']}]",
            f"{row['universal'] / row['neurons']:.1%}",
            f"{row['excess_median']:.3f}",
            f"{row['excess_p99']:.3f}",
        ]
        for row in growth
    ]
    return f"""## How universality grew

The first model against the others of the first set, at their checkpoints.

{table(["step", "M tokens", "universal [95 %]", "share", "median excess", "p99"], rows)}
"""
