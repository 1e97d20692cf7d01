# %% [markdown]
# # A label and a statistic of your own
#
# The study knows many labels and statistics. Your question may need another one.
#
# ## A label
#
# A **label** says of every token whether something holds. A function of the token's string makes one.
# The string has its leading space.

# %%
import numpy as np
import polars as pl

import universal_neurons as un

FAMILY = {"son", "sons", "father", "mother", "brother", "king", "man", "he", "she"}

store = un.run_study(
    un.StudyConfig(
        models=("bundled/seed-1", "bundled/seed-2"),
        max_tokens=20_000,
        labels=(),  # these alone; ("default",) adds all others
        stages=("statistics", "labels", "universality"),
        draws=4,
        out="runs/own-label",
    ),
    labels={
        "digits": lambda token: token.strip().isdigit(),
        "person": lambda token: token.strip().lower() in FAMILY,
        "long token": lambda token: len(token.strip()) >= 5,
    },
)
store.table("label_counts")

# %% [markdown]
# `count` says at how many tokens a label holds. A label that hardly ever holds explains nothing.
# `previous` means the label of the token before. The study makes that one by itself.
#
# Which neurons does a label explain best?

# %%
store.best_for("digits").select("model", "layer", "neuron", "variance_reduction", "rank").head(4)

# %% [markdown]
# On the command line labels are functions in a file: `--labels mine.py`.
#
# ## A statistic
#
# A **statistic** is a number per neuron that is added up over the text, batch by batch.
# The package's own are small classes. Yours can be one too. It needs four things:
# its numbers at the start, what a batch adds, how two parts merge, and the result.
#
# Our statistic is the longest run: for how many tokens on end does a neuron stay above 0?

# %%
import torch

from universal_neurons.statistics import Accumulator, Batch, Block, Key


class LongestRun(Accumulator):
    """For every neuron the most tokens on end of one row at which it is above 0."""

    TENSORS = ("longest",)

    def __init__(self, model: str, n_neurons: int) -> None:
        super().__init__((model,))
        self.longest = torch.zeros(n_neurons)

    def update(self, batch: Batch) -> None:
        (block,) = self.blocks(batch)
        run = torch.zeros_like(self.longest)
        for values in block.values:  # one row of text, token by token
            run = (run + 1) * (values > 0)
            self.longest = torch.maximum(self.longest, run)
        self.count += len(block.values)

    def _merge_tensor(self, name: str, theirs: torch.Tensor) -> None:
        self.longest = torch.maximum(self.longest, theirs)

    def result(self) -> torch.Tensor:
        return self.longest


# %% [markdown]
# `merge` comes from the base class. It adds tensors, unless told otherwise: longest runs take the larger one.
#
# We feed it rows of the bundled text, each as a batch of its own.

# %%
model = un.load_model("bundled/seed-1")
config = un.StudyConfig(models=("bundled/seed-1",), max_tokens=8_000)
tokens = un.TokenDataset.load(config, model.tokenizer, context=model.context)


def runs_of(rows: range) -> LongestRun:
    found = LongestRun("seed-1", model.n_neurons)
    for row in rows:
        values = model.activations(torch.tensor(tokens.ids(np.array([row]))))[
            0, 1:
        ]  # without the token of the beginning
        found.update(Batch({Key("seed-1"): Block(values)}))
    return found


whole = runs_of(range(len(tokens)))
longest = pl.DataFrame({"layer": [n // 256 for n in range(model.n_neurons)], "longest": whole.result().int().numpy()})
longest.group_by("layer").agg(median=pl.col("longest").median(), most=pl.col("longest").max()).sort("layer")

# %% [markdown]
# ## Test it
#
# Two parts that are merged must give what the whole gives. And a plain computation must agree.

# %%
half = len(tokens) // 2
first, second = runs_of(range(half)), runs_of(range(half, len(tokens)))
first.merge(second)
print("parts agree with the whole:", torch.equal(first.result(), whole.result()))

neuron = int(whole.result().argmax())
plain = 0
for row in range(len(tokens)):
    fires = (model.activations(torch.tensor(tokens.ids(np.array([row]))))[0, 1:, neuron] > 0).tolist()
    plain = max([plain, *(len(part) for part in "".join("x" if f else " " for f in fires).split())])
print("a plain loop agrees:", plain == int(whole.result()[neuron]))
