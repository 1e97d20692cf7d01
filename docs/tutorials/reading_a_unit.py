# %% [markdown]
# # Reading a unit
#
# A **unit** is one neuron. This tutorial asks three questions about one:
# what does it fire on, what does it do, and what happens without it?
#
# The study is the one of the first tutorial.

# %%
import polars as pl

import universal_neurons as un

store = un.run_study(
    un.StudyConfig(
        models=("bundled/seed-1", "bundled/seed-2"),
        max_tokens=40_000,
        nlp=None,
        roles=un.RoleSettings(tokens=1024),
        out="runs/first-study",
    )
)
universal = store.universal()
universal.select("neuron", "excess_corr", "family", "label").head(8)

# %% [markdown]
# ## What it fires on
#
# A **label** says of every token whether something holds, such as "the token is a comma".
# The study finds the label that explains most of a neuron's variance.
# The **family** is the kind of that label. A neuron of the family `unigram` fires on one word.
#
# We take the universal neuron whose label explains most.

# %%
best = universal.join(
    store.neurons.with_columns(neuron=pl.format("{}/L{}.{}", "model", "layer", "neuron")),
    on="neuron",
).sort("variance_reduction", descending=True)
unit = store.neuron(best["neuron"][0])
print(f"{unit.name}, {unit.row['family']}: {unit.row['label']}, {unit.row['variance_reduction']:.2f} of the variance")
unit.labels.select("rank", "label", "variance_reduction").head(5)

# %% [markdown]
# `variance_reduction` is the share of the neuron's variance that the label explains.
# One sentence sums up what the neuron fires on and does. A rule makes it from the tables; no language model is asked.

# %%
said = store.explanations.filter(model=unit.model, layer=unit.layer, neuron=unit.neuron)
print(said["explanation"][0])

# %% [markdown]
# The page of the neuron has the evidence: numbers, matches, and the places where it fires most.
# A notebook shows it by the neuron's name alone. Colour says how strongly the neuron fires.

# %%
unit

# %% [markdown]
# ## Is the match really alike?
#
# The match is a neuron of a model that was trained apart.
# The figure shows their ρ, and its interval on text that did not choose the match.

# %%
unit.plot.matches()

# %%
unit.counterparts

# %% [markdown]
# ## What it does
#
# A neuron adds a vector to the model's running sum. That sum decides the next token.
# So each neuron raises the scores of some tokens and lowers others. This is its **logit effect**.

# %%
model = un.load_model("bundled/seed-1")
effect = unit.effects.row(0, named=True)
print("raises", [model.tokenizer.decode([token]) for token in effect["top_tokens"][:6]])
print("lowers", [model.tokenizer.decode([token]) for token in effect["bottom_tokens"][:6]])

# %%
unit.plot.logit_effects()

# %% [markdown]
# A **role** is a kind of effect, such as raising one class of tokens.
# Some models cannot show a role, whatever their neurons do. The table says which, with the reason.

# %%
store.table("preconditions").filter(model="seed-1").select("role", "measure", "value", "wanted", "met")

# %% [markdown]
# ## What happens without it?
#
# An **intervention** changes a neuron while the model runs. We hold this one at its mean activation.
# The **loss** says how surprised the model is by a token, in nats.

# %%
text = "Once there was a miller who had three sons, and the younger brother was never clever."
before = un.loss(model, text)
with un.ablate(model, store, unit.name) as taken:
    after = un.loss(model, text)
change = before.to_frame().select("string", before="loss").with_columns(after=after.to_frame()["loss"])
change = change.with_columns(rise=pl.col("after") - pl.col("before"))
print(f"held at {taken['value'][0]:.3f}; the loss rises by {change['rise'].mean():.3f} nats a token on average")
change.sort(pl.col("rise").abs(), descending=True).head(5)

# %% [markdown]
# Above 0, the token became harder to predict. After the `with` block the model is as it was.
#
# An activation may also be set by hand. Here the neuron is held at 3.0 everywhere.

# %%
with un.intervene(model, [unit.name], un.Edit("fix", 3.0)):
    fixed = un.loss(model, text)
print(f"mean loss {before.mean:.2f} as it is, {fixed.mean:.2f} held at 3.0")
