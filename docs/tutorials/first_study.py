# %% [markdown]
# # A first study
#
# A model has many neurons. Training decides what each of them does.
# This tutorial compares two small models. They differ in the seed of their training.
# It asks which neurons of the first model the second one has too.
#
# Both models come with the package. So does the text.

# %%
import universal_neurons as un

store = un.run_study(
    un.StudyConfig(
        models=("bundled/seed-1", "bundled/seed-2"),
        max_tokens=40_000,
        nlp=None,  # no labels of syntax: they need spaCy
        roles=un.RoleSettings(tokens=1024),
        out="runs/first-study",
    )
)

# %% [markdown]
# The study is a folder. A second call with the same settings finds it and reads it.
# The tutorial *Reading a unit* uses it too.
#
# ## One row per neuron
#
# The first model is the **reference**. Its neurons are the ones asked about.
# For each of them the study looks for the neuron of the other model that fires most alike.
# How alike is a correlation, ρ, over the tokens of the text. The best one is the neuron's **match**.
#
# A high ρ alone says little. A random mixture of neurons reaches some ρ as well.
# That ρ is the **baseline**. The **excess** is ρ of the match minus the baseline.

# %%
import polars as pl

living = store.neurons.filter(~pl.col("dead"), pl.col("model") == "seed-1")
highest = living.sort("excess_corr", descending=True).head(5)
highest.select("layer", "neuron", "max_corr", "mean_baseline", "excess_corr")

# %% [markdown]
# A neuron that never fires is **dead**. Its numbers are not defined, so it is left out above.
#
# ## Universal neurons
#
# A neuron is **universal** if its excess is above 0.5. This is the rule of the paper
# [Universal Neurons in GPT2 Language Models](https://arxiv.org/abs/2401.12181).

# %%
universal = store.universal()
print(len(living), "neurons fire;", len(universal), "are universal")
universal.select("neuron", "excess_corr", "match_seed-2", "corr_seed-2", "family", "label").head(5)

# %% [markdown]
# The **label** is what explains best when the neuron fires. The **family** is the kind of the label.
# The tutorial *Reading a unit* says more about both.
#
# The figure shows all neurons. Its caption says what to look for.
# Panel (b) compares several other models. Here there is one, so all points lie on the line.

# %%
store.plot.universality()

# %% [markdown]
# ## How sure is the count?
#
# The border of 0.5 is a choice. The next figure shows the count at every border.

# %%
store.plot.thresholds()

# %%
counts = store.table("thresholds").filter(pl.col("threshold").is_between(0.44, 0.56))
counts.select("threshold", "universal", "surely", "possibly")

# %% [markdown]
# `surely` counts neurons whose whole 95 % interval is above the border.
# `possibly` counts neurons whose interval reaches above it. The interval comes from text that chose no match.
#
# ## What next
#
# `store` alone at the end of a cell prints the whole summary.
# The command line makes such a study too. It draws pages as well:
#
#     uneurons run --models bundled/seed-1 bundled/seed-2 --max-tokens 40000 --out runs/first
#     uneurons export runs/first --out site
