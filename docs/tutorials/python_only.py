# %% [markdown]
# # From Python only
#
# Nothing has to lie on disk. This tutorial hands over models and tokens that are in memory.
# The results are tables of polars, a library for tables.
#
# ## Models and tokens in memory
#
# `un.Model` wraps a model that you have loaded or trained yourself. `un.load_model` reads one from a folder.

# %%
import numpy as np
import polars as pl
import torch

import universal_neurons as un

models = [un.load_model(f"bundled/seed-{seed}") for seed in (1, 2)]
models[0]

# %% [markdown]
# Tokens come from documents, as ids. Each document says of which subset it is.

# %%
stories = [
    "Once there was a miller who had three sons, and the younger brother was never clever.",
    "import numpy as np\n\ndef mean(values):\n    return np.sum(values) / len(values)\n",
]
pieces = [
    (subset, models[0].ids_of(text)[0, 1:].numpy())  # without the token of the beginning, which every row gets
    for _ in range(120)
    for subset, text in zip(("story", "code"), stories)
]
tokens = un.TokenDataset.from_pieces(pieces, context=64, bos=0, masked=(0,))
tokens

# %% [markdown]
# `masked` tokens count in no statistic.
#
# ## The study

# %%
store = un.run_study(
    un.StudyConfig(stages=("statistics", "universality"), draws=4, out="runs/in-memory"),
    models=models,
    tokens=tokens,
    progress=False,
)
print(len(store.neurons), "rows in neurons,", len(store.matches), "in matches")

# %% [markdown]
# Only the results lie on disk. `un.Store("runs/in-memory")` reads them again, without the models.
#
# ## Tables
#
# `model`, `layer` and `neuron` are the same columns in every table. So tables can be joined.
# Here we ask how often the best match of a neuron lies in the same layer.

# %%
best = store.matches.filter(pl.col("rank") == 1).join(store.neurons, on=["model", "layer", "neuron"])
by_layer = best.group_by("layer").agg(
    neurons=pl.len(),
    same_layer=(pl.col("match_layer") == pl.col("layer")).mean().round(2),
    median_corr=pl.col("corr").median().round(2),
)
by_layer.sort("layer")

# %% [markdown]
# The text is two documents, over and over. So these numbers say nothing general about the models.
#
# ## Activations by hand
#
# A study is not needed to look at activations. They are an ordinary tensor: rows × tokens × neurons.

# %%
ids = models[0].ids_of(stories[0])
activations = models[0].activations(ids)
print(tuple(activations.shape), "and by the study", store.neurons.filter(model="seed-1").height, "neurons")

# %% [markdown]
# We compute one correlation ourselves and compare it with the study's.
# `tokens.mask` says which tokens count. The study leaves out a fifth of the text when it chooses matches.
# So the two numbers need not be equal to the last digit.

# %%
rows = np.arange(len(tokens))
keep = tokens.mask(rows)
first = best.filter(pl.col("layer") == 0).sort((pl.col("corr") - 0.8).abs()).row(0, named=True)
both = []
for model, layer, neuron in zip(models, (0, first["match_layer"]), (first["neuron"], first["match_neuron"])):
    values = np.concatenate([model.activations(torch.tensor(tokens.ids(rows[at : at + 60]))) for at in rows[::60]])
    both.append(values[keep][:, model.units.starts[layer] + neuron])
print(f"by hand {np.corrcoef(both)[0, 1]:.3f}, by the study {first['corr']:.3f}")

# %% [markdown]
# ## Figures and files
#
# Every figure is a matplotlib figure. Every table writes itself to a file.

# %%
store.plot.universality().savefig("runs/universality.pdf")
store.matches.write_csv("runs/matches.csv")
print(store.plot)
