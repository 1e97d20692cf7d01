# %% [markdown]
# # Dynamics
#
# When does a neuron become universal, and does it stay so?
# The bundled seeds come with **checkpoints**: copies of the model that were saved during training.
# A study compares the seeds at every checkpoint.

# %%
import universal_neurons as un

found = un.run_dynamics(
    un.DynamicsConfig(
        models=("bundled/seed-1", "bundled/seed-2"),
        revisions=("step-742", "step-1546", "step-6717"),
        max_tokens=15_000,
        draws=4,
        stages=("universality",),
        out="runs/dynamics",
    )
)
found.checkpoints.select("step", "universal", "persistence")

# %% [markdown]
# `persistence` is the share of the universal neurons of the checkpoint before that are universal still.
# At the first checkpoint there is none before.

# %%
found.plot.universal_set()

# %% [markdown]
# ## How early is a neuron what it will be?
#
# Each neuron is compared with itself at the last checkpoint.

# %%
found.plot.self_correlation()

# %% [markdown]
# ## One checkpoint
#
# Every checkpoint is a study like any other.

# %%
last = found.study(found.checkpoints["checkpoint"][-1])
last.universal().select("neuron", "excess_corr", "match_seed-2-step-6717").head(4)
