# %% [markdown]
# # Dictionaries
#
# A **dictionary** rewrites what stands in a model as a sum of a few directions.
# Sparse autoencoders are dictionaries. Each direction is a **latent**; few latents are active at a time.
#
# This tutorial compares the latents of two models. Both come with dictionaries of their own, one for each layer.

# %%
import polars as pl

import universal_neurons as un

store = un.run_study(
    un.StudyConfig(
        models=("bundled/seed-1::bundled", "bundled/seed-2::bundled"),
        max_tokens=20_000,
        nlp=None,
        draws=4,
        stages=("weights", "statistics", "labels", "universality"),
        out="runs/latents",
    )
)

# %% [markdown]
# Behind `::` stands what is studied in place of neurons. It may be a folder of your own, or a hub id.
#
# ## Do the dictionaries fit?
#
# The study checks each dictionary on its own text first.
# `explained` is the share of the variance that the latents explain. `l0` is how many latents are active at a token.
# `silent` is how many were never active.

# %%
checked = [{"source": name} | each for name, found in store.manifest["dictionaries"].items() for each in found]
pl.DataFrame(checked).select("source", "read", "latents", "explained", "l0", "silent")

# %% [markdown]
# ## Which latents does the other model have?

# %%
asked = store.neurons.filter(model=store.models[0])
print(len(asked), "latents;", asked["dead"].sum(), "are never active;", len(store.universal()), "are universal")
store.universal().select("neuron", "excess_corr", "family", "label").head(6)

# %%
store.plot.universality()

# %% [markdown]
# ## One latent
#
# A latent writes a direction, as a neuron does. So it raises some tokens and lowers others.
# We take the first universal one that a label explains.

# %%
latent = store.neuron(store.universal().drop_nulls("label")["neuron"][0])
effect = latent.effects.row(0, named=True)
tokenizer = un.load_model("bundled/seed-1").tokenizer
print(f"{latent.name}, {latent.row['family']}: {latent.row['label']}")
print("raises", [tokenizer.decode([token]) for token in effect["top_tokens"][:6]])
print("lowers", [tokenizer.decode([token]) for token in effect["bottom_tokens"][:6]])

# %% [markdown]
# ## Is that more than chance?
#
# Latents are sparse, and random mixtures of them are not. So the baseline of mixtures is a low bar here.
# `baseline="permutation"` keeps each latent as sparse as it is. It shuffles the tokens instead.
