# %% [markdown]
# # What a fine-tune changed
#
# A **fine-tune** is a model that was trained further on other text.
# Its neurons correspond to those of its **base**: neuron 5 before is neuron 5 after.
# So every neuron can be compared with itself.
#
# `bundled/seed-1-german` is `bundled/seed-1` after more training on German text.
# `bundled/seed-1-python` is the same base after more training on Python code.

# %%
import polars as pl

import universal_neurons as un

found = un.run_diff(
    un.DiffConfig(
        models=("bundled/seed-1", "bundled/seed-1-german"),
        nulls=("bundled/seed-1-python",),
        max_tokens=25_000,
        nlp=None,
        stages=("weights", "statistics", "labels", "universality"),
        effects=4,
        effect_tokens=2048,
        out="runs/german",
    )
)

# %% [markdown]
# ## Kinds of change
#
# The study names one kind of change for every neuron.

# %%
print("re-tuned: a correlation with itself surely below", found.config.same)
found.changes["kind"].value_counts(sort=True)

# %% [markdown]
# A **re-tuned** neuron fires on something else: its correlation with itself is surely below 0.9.
# A **re-scaled** one fires on the same, but stronger or weaker.
# A **shifted** one fires more or less often, or about another mean.
# A **redirected** one does something else to the next token.

# %%
found.plot.changes()

# %% [markdown]
# ## The neurons that changed most

# %%
changed = found.changes.filter(pl.col("kind") == "re-tuned").sort("self_corr")
changed.select("layer", "neuron", "self_corr", "self_corr_low", "self_corr_high", "label_before", "label_after").head(6)

# %% [markdown]
# `self_corr` is the correlation of a neuron before and after.
# `self_corr_low` and `self_corr_high` are the ends of its interval: how sure the text makes it.
#
# ## Is that unusual?
#
# Any training changes something. The Python fine-tune shows how much.
# `q_change` is small where a change is larger than the changes of the other fine-tune.

# %%
print("smallest q", round(found.changes["q_change"].min(), 2))

# %% [markdown]
# ## Do the changed neurons matter?
#
# `ablated_after` says by how many nats the loss rises when the neuron is held at its mean in the fine-tune.

# %%
found.table("unit_effects").select("layer", "neuron", "size", "ablated_before", "ablated_after")

# %% [markdown]
# `ablated_before` is the same in the base. Both are of the bundled text, which has many subjects.
# `data_tuned` names a second text, such as the fine-tune's own. Then both are measured on it too.
