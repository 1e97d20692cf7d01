"""Why there is nothing to see: for every page that a study has nothing for, the reason and the remedy."""

from collections.abc import Mapping

import polars as pl

from universal_neurons.explorer.explained_units import told_units
from universal_neurons.explorer.studies import ShownStudy
from universal_neurons.roles import NEAREST, cannot_be_shown, role_rows
from universal_neurons.storage import Store

PAGES = {  # a page, and the content that it is about
    "families": "families", "roles": "roles", "layers": "layers", "models": None, "subsets": "subsets",
    "dynamics": "dynamics", "explanations": "explanations", "text": "text",
}  # fmt: skip


def shown_pages(missing: Mapping[str, str]) -> list[str]:
    """The pages that have something to show."""
    return ["study", "unit", *(page for page, content in PAGES.items() if content not in missing)]


def absent(study: ShownStudy, store: Store) -> dict[str, str]:
    """By name of what is absent, a sentence or two; `store` is the study's as summaries read it."""
    missing = {} if store.askers else {"universality": _no_universality(study)}
    tables = {
        "families": ("labels", f"This study had no stage labels: {_again('--stages labels')}."),
        "examples": ("examples", f"This study kept no examples: {_again('the stage statistics')}."),
        "tokens": ("tokens", "No means by token: their sums were too large for memory, or not asked for."),
        "vocabulary": ("vocabulary", "This study kept no vocabulary: tokens are shown by their numbers."),
        "roles": ("interventions", _no_roles(study)),
        "effects": ("effects", _no_effects(study)),
        "layers": ("layers", missing.get("universality", "This study kept no layer profile.")),
        "one_to_one": ("consistency", "This study is of a version that matched nothing one to one, or has no matches."),
        "similarity": ("similarity", f"This study compared no layers as wholes: {_again('the stage similarity')}."),
        "subsets": ("subsets", f"No subset of the text was asked about: {_again('--subset all')}."),
        "thresholds": ("thresholds", "This study is of a version that counted at one threshold alone."),
        "anchors": ("anchors", "This study is of a version that kept no anchors, or asked about no matches."),
        "cliques": ("cliques", f"Cliques need matches of every model: {_again('--pairs all')}."),
        "null": ("null", f"Nothing is held against untrained networks: {_again('--null untrained')}."),
        "counterparts": ("counterparts", _no_counterparts(study)),
        "spans": ("spans", "All models have the same tokenizer: a position is a token."),
    }  # fmt: skip
    missing |= {name: reason for name, (table, reason) in tables.items() if not store.has(table)}
    if store.has("similarity"):
        missing.pop("layers", None)
    if study.dynamics is None:
        missing["dynamics"] = (
            "A study is of one moment of training: uneurons dynamics studies checkpoints; its folder can be shown."
        )
    if told_units(store).is_empty():
        missing["explanations"] = _no_explanations(store)
    missing["text"] = "A text of your own is tried where the models are: uneurons serve RUN."
    if store.askers and store.config.pairs != "all":
        missing["pairs"] = (
            f"Only {study.models[0]} was asked about; the other models' matches: {_again('--pairs all')}."
        )
    return missing | _same_function(study, store) | _roles_without_units(study, store)


def _same_function(study: ShownStudy, store: Store) -> dict[str, str]:
    """Why a unit is not compared by what it does: a universal one, any other of the reference, one of another model."""
    if not store.askers:
        return {"functional": _no_universality(study)}
    if not store.has("functional"):
        return {"functional": "Not every model's roles could be told." if store.has_roles else _no_roles(study)}
    compared = store.table("functional").select("layer", "neuron").n_unique()
    universal = int(store.neurons.filter(pl.col("model") == store.askers[0])["is_universal"].sum())
    done, best = "compared by what they do", f"the {compared:,} of highest excess"
    not_this_one = {
        "functional": f"Only universal units are {done}: {best}, of {universal:,}.",
        "functional:universal": f"Of the {universal:,} universal units {best} are {done}; this one is not among them.",
    }
    if not universal:
        not_this_one = {"functional": f"No unit is universal: {best} are {done}; this one is not among them."}
    elsewhere = f"Only units of {study.models[0]}, the reference, are {done}."
    return not_this_one | {"functional:elsewhere": elsewhere}


def _no_explanations(store: Store) -> str:
    if store.has("labels"):
        return (
            "None but labels, whose sentence stands on each unit's page, and nobody has scored it: "
            "uneurons explain RUN does both."
        )
    return f"This study had no stage labels, which sentences are made from: {_again('--stages labels')}."


def _again(option: str) -> str:
    return f"run it again with {option}, into another folder"


def _no_universality(study: ShownStudy) -> str:
    if len(study.models) == 1:
        return "One model has no counterparts: name more with --models."
    return f"This study asked about no matches: {_again('--stages universality')}."


def _no_roles(study: ShownStudy) -> str:
    if study.store.has("spans"):
        return "Roles are of each model's own tokens, and the tokenizers differ: study the models one by one."
    if any(model.get("features") for model in study.store.manifest["models"]):
        return "Roles are of neurons, and not all units of this study are: study the neurons by themselves."
    return "This study had no stage roles: uneurons roles RUN adds them."


def _no_effects(study: ShownStudy) -> str:
    if any(model.get("features") == "dictionaries" for model in study.store.manifest["models"]):
        return "No logit effects: no latents here write into a residual stream that an unembedding reads."
    return _no_roles(study)


def _no_counterparts(study: ShownStudy) -> str:
    if not study.store.askers:
        return _no_universality(study)
    return (
        "This study kept no windows of held-out text with the matches' activations: run it again, into another folder."
    )


def _roles_without_units(study: ShownStudy, store: Store) -> dict[str, str]:
    """For every role that no unit of the reference has: the nearest."""
    if not store.has_roles:
        return {}
    missing = {}
    for role, counts, best in role_rows(store):
        if not counts[0]:
            why = cannot_be_shown(store, store.models[0], role.replace(" ", "_"))
            told = f"No unit of {study.models[0]} has the role {role}" + (f": it {why}" if why else "")
            nearest = f"; the {NEAREST.strip()}: {best.rpartition(NEAREST)[2]}" if NEAREST in best else ""
            missing[f"role:{role.replace(' ', '_')}"] = f"{told}{nearest}."
    return missing
