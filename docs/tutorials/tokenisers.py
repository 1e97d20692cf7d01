# %% [markdown]
# # Different tokenisers
#
# A tokeniser cuts text into tokens. Two models with different tokenisers read different tokens.
# So their activations do not stand at the same places.
#
# The study compares **spans** then. A span is the shortest stretch of text whose two ends all tokenisers share.
#
# ## A model with a tokeniser of its own
#
# We make one on the bundled text. It is tiny and barely trained.

# %%
import json
import lzma
from importlib.resources import files

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|end|>"
with lzma.open(files("universal_neurons") / "bundled/heldout.jsonl.xz", "rt") as lines:
    texts = [json.loads(line)["text"] for line, _ in zip(lines, range(300))]
pieces = ByteLevelBPETokenizer()
pieces.train_from_iterator(texts, vocab_size=600, special_tokens=[END], show_progress=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, bos_token=END, eos_token=END)

torch.manual_seed(0)
CONTEXT, STEPS = 64, 150
shape = {"n_positions": CONTEXT, "n_embd": 48, "n_layer": 1, "n_head": 2, "n_inner": 128}
other = GPT2LMHeadModel(
    GPT2Config(vocab_size=len(tokenizer), activation_function="relu2", bos_token_id=0, eos_token_id=0, **shape)
)
ids = torch.tensor(tokenizer("\n".join(texts))["input_ids"])
optimiser = torch.optim.AdamW(other.parameters(), lr=5e-3, weight_decay=1.0)
for _ in range(STEPS):
    rows = ids[torch.randint(len(ids) - CONTEXT, (16, 1)) + torch.arange(CONTEXT)]
    loss = other(rows, labels=rows).loss
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"loss {loss.item():.2f} nats a token")

# %% [markdown]
# ## The same text in two ways

# %%
import universal_neurons as un

first = un.load_model("bundled/seed-1")
second = un.Model(other, "other-tokens", tokenizer=tokenizer)
for model in (first, second):
    print(f"{model.name:14}", model.tokenizer.tokenize("The younger brother had three sons."))

# %% [markdown]
# ## The study
#
# Nothing has to be said about the tokenisers. A model's activations on the tokens of a span become one: their mean.

# %%
store = un.run_study(
    un.StudyConfig(
        max_tokens=20_000,
        nlp=None,
        stages=("statistics", "labels", "universality"),
        out="runs/other-tokens",
    ),
    models=[first, second],
)
store.table("spans").select("model", "spans", "tokens", "tokens_per_span", "own_fraction")

# %% [markdown]
# The table says how well the tokenisers fit. It has a row for each model.
# `own_fraction` is the share of the model's tokens that are a span by themselves.
#
# ## What is found again?

# %%
import polars as pl

asked = store.neurons.filter(~pl.col("dead"), pl.col("model") == "seed-1")
print(len(asked), "neurons fire; highest excess", round(asked["excess_corr"].max(), 2))
print("median excess", round(asked["excess_corr"].median(), 2))
asked.sort("excess_corr", descending=True).select("layer", "neuron", "max_corr", "excess_corr", "label").head(5)

# %%
store.plot.universality()

# %% [markdown]
# A low excess has two possible reasons. The other model is small and barely trained. Spans blur activations as well.
# So compare with a pair of models of one tokeniser, as in the first tutorial, before you conclude.
