"""Explanations with scores for a study that has none: made by hand, so that tests can say what must be shown."""

import polars as pl
from plain_site import table_of, with_tables

from universal_neurons.explanations import ANOTHER, COUNTERPART, EMPTY, OWN, RANDOM, SCHEMA

COUNT = 24  # units of the first model that are explained
SAID = "</script><img src=x onerror=\"window.pwned=1\"> $x$ 'fires' on & after 🧠 "
AUTHOR = "<b>judge & co</b>"
SCORER = "judge<i>"


def own_score(number: int) -> float:
    return round(0.951 - 0.0303 * number, 4)


def there_score(number: int) -> float:
    """Of the same sentence on each counterpart."""
    return round(own_score(number) - 0.1512, 4)


def with_hand_scores(source, target):
    """A copy of a store whose first units have a sentence by an author, scored as their label sentences are."""
    neurons, matches = table_of(source, "neurons"), table_of(source, "matches").filter(rank=1)
    explained = neurons.filter(pl.col("model") == neurons["model"][0], ~pl.col("dead")).head(COUNT)
    places = explained.select("model", "layer", "neuron").rows()
    sentences = pl.DataFrame(
        [(*place, AUTHOR, f"{SAID}{number}") for number, place in enumerate(places)],
        table_of(source, "explanations").select("model", "layer", "neuron", "source", "explanation").schema,
        orient="row",
    )
    of_labels = table_of(source, "explanations").select(sentences.columns)
    rank = {place: number for number, place in enumerate(neurons.select("model", "layer", "neuron").rows())}
    every = sorted([*sentences.rows(), *of_labels.rows()], key=lambda row: rank[row[:3]])  # stable: the author's first
    rows = []
    for number, (model, layer, neuron) in enumerate(places):
        place, own = (model, layer, neuron), own_score(number)
        rows += [
            _row(place, own, place, AUTHOR, OWN),
            _row(place, own - 0.1, place, AUTHOR, OWN, "fuzzing", 0.5),
            _row(place, 0.24, place, "labels", OWN),
            _row(place, 0.21, places[number - 1], AUTHOR, ANOTHER),
            _row(place, None, place, "labels", OWN, "simulation"),
            _row(place, 0.22, place, EMPTY, EMPTY) | {"explanation": EMPTY},
        ]
        there = matches.filter(asker=model, layer=layer, neuron=neuron)
        for match in there.rows(named=True):
            other = match["match_model"], match["match_layer"], match["match_neuron"]
            beside = *other[:2], (other[2] + 1) % 8
            rows += [
                _row(other, there_score(number), place, AUTHOR, COUNTERPART),
                _row(beside, round(0.2 + 0.01 * (number % 3), 4), place, AUTHOR, RANDOM),
            ]
    universal = pl.struct("model", "layer", "neuron").is_in(
        explained.select(pl.struct("model", "layer", "neuron")).to_series().implode()
    )
    changed = {
        "explanations": pl.DataFrame(every, sentences.schema, orient="row"),
        "scores": pl.DataFrame(rows, SCHEMA),
        "neurons": neurons.with_columns(is_universal=universal),
    }
    return with_tables(source, target, changed=changed)


def _row(at, score, of, source, use, method="detection", chance=0.2):
    model, layer, neuron = at
    explained = f"{of[0]}/L{of[1]}.{of[2]}"
    row = dict.fromkeys(SCHEMA) | {
        "model": model, "layer": layer, "neuron": neuron, "explanation": explained, "source": source, "use": use,
        "method": method, "scorer": SCORER, "n_windows": 260, "missing": 3, "certain": 0,
    }  # fmt: skip
    if score is None:
        return row
    return row | {"base_rate": chance, "auprc": score, "auprc_low": score - 0.1, "auprc_high": score + 0.05}
