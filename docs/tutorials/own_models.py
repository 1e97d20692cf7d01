# %% [markdown]
# # Your own models and text
#
# A study needs two things: folders with models, and a file with text.
# This tutorial makes both on the spot. Replace them with your own.
#
# ## A text
#
# Every line of the file is one document in JSON. `text` is its text.
# `subset` is optional: it says what kind of document this is.

# %%
import json
import random
from pathlib import Path

words = random.Random(0)
SCENES = {
    "farm": (["cow", "horse", "goose", "farmer"], ["eats", "sees", "carries"], ["hay", "corn", "water"]),
    "kitchen": (["cook", "baker", "guest", "child"], ["cuts", "tastes", "boils"], ["bread", "soup", "cheese"]),
}


def sentence(scene: str) -> str:
    who, does, what = (words.choice(each) for each in SCENES[scene])
    return f"The {words.choice(['old', 'young', 'tired'])} {who} {does} {words.randint(2, 9)} pieces of {what}."


documents = [
    {"subset": scene, "text": " ".join(sentence(scene) for _ in range(12))} for _ in range(120) for scene in SCENES
]
Path("my").mkdir(exist_ok=True)
Path("my/text.jsonl").write_text("\n".join(map(json.dumps, documents)))
print(len(documents), "documents, such as:", documents[0]["text"][:80])

# %% [markdown]
# ## A tokeniser
#
# A tokeniser cuts text into tokens. This one learns its pieces from the text.

# %%
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
pieces = ByteLevelBPETokenizer()
pieces.train_from_iterator(
    (each["text"] for each in documents), vocab_size=320, special_tokens=[END], show_progress=False
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, bos_token=END, eos_token=END)
print(tokenizer.tokenize(documents[0]["text"])[:8])

# %% [markdown]
# ## Two models
#
# Both have the same shape and read the same text. Only the seed differs.

# %%
import torch
from transformers import GPT2Config, GPT2LMHeadModel

ids = torch.tensor(tokenizer(" ".join(each["text"] for each in documents))["input_ids"])
CONTEXT, STEPS = 32, 200


def trained(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), activation_function="relu2", bos_token_id=0, eos_token_id=0, **shape)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1.0)
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - CONTEXT, (16, 1))
        rows = ids[starts + torch.arange(CONTEXT)]
        loss = model(rows, labels=rows).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"seed {seed}: loss {loss.item():.2f} nats a token")
    return model


for seed in (1, 2):
    trained(seed).save_pretrained(f"my/seed-{seed}")
    tokenizer.save_pretrained(f"my/seed-{seed}")

# %% [markdown]
# A folder now holds a model and its tokeniser. Any folder that `transformers` can load will do.
# Before a long study, check that the models fit together, and what it costs:
#
#     uneurons check my/seed-1 my/seed-2
#     uneurons estimate --models my/seed-1 my/seed-2 --data my/text.jsonl
#
# ## The study

# %%
import polars as pl

import universal_neurons as un

store = un.run_study(
    un.StudyConfig(
        models=("my/seed-1", "my/seed-2"),
        data="my/text.jsonl",
        nlp=None,
        stages=("weights", "statistics", "labels", "universality"),  # all but layers and roles
        out="runs/mine",
    )
)
asked = store.neurons.filter(~pl.col("dead"), pl.col("model") == "seed-1")
print(len(store.universal()), "of", len(asked), "neurons that fire are universal")
asked.sort("excess_corr", descending=True).select("layer", "neuron", "excess_corr", "family", "label").head(5)

# %% [markdown]
# ## What do the neurons fire on?

# %%
store.families.filter(model="seed-1").select("family", "neurons", "variance_reduction_median")

# %%
store.plot.universality()

# %% [markdown]
# Some excess comes without any training. So compare with networks that learned nothing:
# add `null="untrained"` to the settings. It costs a study's passes once more for every draw.
