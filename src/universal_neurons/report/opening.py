"""What a study asked and found, in a few plain sentences for somebody who has not read the paper."""

import polars as pl

from universal_neurons.labels import UNEXPLAINED
from universal_neurons.report.facts import Facts, facts
from universal_neurons.report.sources import source_sentences
from universal_neurons.report.words import spoken_of
from universal_neurons.storage import Store


def opening_sentences(store: Store) -> list[str]:
    """Sentences on the reference model: what was asked, how many neurons are universal, what they fire on and do."""
    reference = store.models[0]
    neurons = store.neurons.filter(pl.col("model") == reference)
    if reference in store.askers:
        found = facts(store, reference)
        lines = [_question(store, found), _answer(found), _certainty(found)]
    else:
        lines = [_plain_question(store, neurons)]
    spoken = spoken_of(store.manifest)
    return [*map(spoken, lines), *source_sentences(store), *_families(store, neurons), *_roles(store, neurons)]


def _question(store: Store, found: Facts) -> str:
    count = len(found.others)
    models = "the other model" if count == 1 else "both other models" if count == 2 else f"all {count} other models"
    text = (
        f"spans that all tokenizers share, {found.tokens:,} of them"
        if store.has("spans")
        else f"{found.tokens:,} tokens"
    )
    return f"Which neurons of {found.asker} do {models} find again? All models read the same text: {text}."


def _answer(found: Facts) -> str:
    counts = found.standardised or found.paper
    paper = "" if found.standardised is None else f" (as the paper counts, {found.paper.universal:,})"
    models = "the other model" if len(found.others) == 1 else "the other models"
    return (
        f"{counts.universal:,} of {found.neurons:,} neurons ({counts.universal / found.neurons:.1%}) are universal"
        f"{paper}: their best matches in {models} correlate with them by more than {found.threshold:g} "
        "above what chance gives."
    )


def _certainty(found: Facts) -> str:
    counts = found.standardised or found.paper
    few = ""
    if counts.on_more is not None and counts.on_more < counts.universal:
        few = f" The matches of {counts.universal - counts.on_more:,} of them rest on little text."
    return (
        f"On text that had no part in choosing the matches {counts.heldout:,} are; the 95 % interval of "
        f"{counts.surely:,} is wholly above {found.threshold:g}, that of {counts.possibly:,} reaches above it.{few}"
    )


def _plain_question(store: Store, neurons: pl.DataFrame) -> str:
    whose = (
        f"the neurons of {store.models[0]}" if len(store.models) == 1 else f"the neurons of {len(store.models)} models"
    )
    text = f" on {store.manifest['counted_tokens']:,} tokens" if store.manifest["counted_tokens"] else ""
    return f"What are {whose} like{text}? No counterparts were asked about. {store.models[0]} has {len(neurons):,}."


def _families(store: Store, neurons: pl.DataFrame) -> list[str]:
    if not store.has("labels"):
        return []
    counts = neurons.filter(pl.col("family") != UNEXPLAINED)["family"].value_counts(sort=True)
    if counts.is_empty():
        return ["No label explains what any of them fires on."]
    family, most = counts.sort(["count", "family"], descending=[True, False]).row(0)
    total = int(counts["count"].sum())
    largest = family.replace("_", " ")
    return [f"A family is known for {total:,} of {len(neurons):,}; the largest is {largest}, with {most:,}."]


def _roles(store: Store, neurons: pl.DataFrame) -> list[str]:
    if not store.has_roles:
        return []
    count = neurons.filter(pl.col("roles").list.len() > 0).height
    who = "None of them has" if not count else "One of them has" if count == 1 else f"{count:,} of them have"
    return [f"{who} a role in what the model predicts."]
