"""A study of two models with planted units, and a language model that reads sentences as rules."""

import re

import numpy as np
import torch
from conftest import small_tokenizer, tiny_network
from stand_in import asked

from universal_neurons.explanations import Reply
from universal_neurons.models import Model, strings_of
from universal_neurons.text import TokenDataset

DIGITS, QUOTES = "Fires on digits.", "Fires on quotation marks."
RULES = {DIGITS: r"\d", QUOTES: "[\"']"}
PLACES = {"one": (0, 1), "two": (5, 7)}  # of the units on digits and on quotation marks, in layer 0
STRINGS = strings_of(small_tokenizer(), list(range(1024)))


def holding(pattern):
    return [token for token in range(1, 1024) if re.search(pattern, STRINGS[token])]


def planted_network(places, seed):
    """A random network whose first layer reads the token alone; two of its units fire exactly on the two classes."""
    network = tiny_network("gpt2", seed)
    body = network.transformer
    block, embedding = body.h[0], body.wte.weight
    with torch.no_grad():
        for silent in (body.wpe.weight, block.attn.c_proj.weight, block.attn.c_proj.bias, block.ln_2.bias):
            silent.zero_()
        block.ln_2.weight.fill_(1)
        embedding[:, :2] = 0
        for dimension, (pattern, unit) in enumerate(zip(RULES.values(), places)):
            embedding[holding(pattern)] = 10 * torch.eye(16)[dimension]
            block.mlp.c_fc.weight[:, unit] = 4 * torch.eye(16)[dimension]
            block.mlp.c_fc.bias[unit] = -6
    return network


def planted_models():
    models = []
    for seed, (name, places) in enumerate(PLACES.items()):
        model = Model(planted_network(places, seed), name, tokenizer=small_tokenizer())
        model.digest = f"{seed:064}"
        models.append(model)
    return models


def random_tokens(rows=500, seed=0):
    chooser = np.random.default_rng(seed)
    return TokenDataset.from_pieces(
        [("", chooser.integers(1, 1024, 63)) for _ in range(rows)], context=64, bos=0, masked=(0,)
    )


class Reader:
    """Reads a sentence as a rule, and the text as it is shown; of examples it says which rule marks follow."""

    def __init__(self, name="reader", identity="reader", rules=RULES):
        self.name, self.identity, self.rules = name, identity, rules
        self.prompts = []

    def replies(self, prompts):
        for place, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            yield place, self.reply(prompt)

    def reply(self, prompt):
        said = {"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}
        kind, parts = asked({"messages": said})
        if kind == "explaining":
            return Reply(text=self.explained(parts[0]))
        text = {"detection": parts[1:2], "fuzzing": re.findall("<<(.*?)>>", parts[1])}.get(kind) or re.findall(
            "<<(.*?)>>$", parts[2]
        )
        pattern = self.rules.get(parts[0])
        does = 0.5 if pattern is None else float(all(re.search(pattern, piece) for piece in text))
        if kind == "simulation":
            return Reply(tuple(np.log([1 - does + 1e-9, *[1e-12] * 9, does + 1e-9]).tolist()))
        return Reply(tuple(np.log([does + 1e-9, 1 - does + 1e-9]).tolist()))

    def explained(self, examples):
        marks = re.findall("<<([^<>]*)>>", "".join(re.findall("<text band='the highest'>.*?</text>", examples)))
        found = [said for said, pattern in self.rules.items() if marks and all(re.search(pattern, m) for m in marks)]
        return found[0] if found else "Fires on nothing that can be said."
