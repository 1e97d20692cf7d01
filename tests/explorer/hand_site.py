"""A small site of the explorer's format, written by hand: two models, every kind of content, hostile strings everywhere.

Its numbers follow from a unit's own (`number`), so that a test can say what a page must show.
"""

import base64
import json
import math
import shutil
from pathlib import Path

import jinja2

STATIC = Path(__file__).parents[2] / "src/universal_neurons/explorer/static"
LAYERS, WIDTH = 2, 40
COUNT = LAYERS * WIDTH
PLAIN_HOSTILE = [
    "</script><script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    "\"'><svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "{{7*7}}${window.pwned=1}",
    "&lt;b&gt;&amp;",
    "\\u202etxet desrever",
    "🧠 émoji e\u0301",
    "x" * 3000,
    "]]>--><!--",
]
BREAKS = ["", '"', "'", "-->", "`", "</title>", "</textarea></style>", "\\", "%3C%2Fscript%3E", "\u2028"]
HOSTILE = [before + text for before in BREAKS for text in PLAIN_HOSTILE]  # a hundred
MODELS = ["seed-1", "seed<2>&\"'"]
FAMILIES = ["unigram", "syntax", "position", "unexplained", "context"]
ROLES = ["", "prediction", "entropy", "attention_deactivation"]
TERMS = {
    "excess": "Mean best correlation minus what rotated neurons reach.",
    "excess_corr": "Mean best correlation minus what rotated neurons reach.",
    "universal": "A unit whose excess is above the threshold.",
    "family": "What a unit fires on.",
    "role": "What a unit does to the prediction.",
    "sparsity": "Share of positions with a pre-activation above 0.",
}


def statement(path: str, data: object) -> str:
    return f"un.add({json.dumps(path)},{json.dumps(data, allow_nan=False)});\n".replace("<", "\\u003c")


def packed(kind: str, values: list) -> str:
    """Base64 of little-endian values of an array type code of `numpy`."""
    import numpy as np

    return base64.b64encode(np.asarray(values, dtype=kind).tobytes()).decode()


def f32(values: list) -> dict:
    return {"type": "f32", "data": packed("<f4", [math.nan if value is None else value for value in values])}


def whole(kind: str, values: list) -> dict:
    return {"type": f"u{kind}", "data": packed({"8": "u1", "16": "<u2", "32": "<u4"}[kind], values)}


def words(values: list[str]) -> dict:
    names = sorted(set(values))
    return {
        "type": "dict",
        "values": names,
        "data": packed("u1", [names.index(value) for value in values]),
        "index": "u8",
    }


def excess(model: int, number: int) -> float | None:
    """Of the last unit, which is dead, none."""
    return None if number == COUNT - 1 else round(0.9 - 0.012 * number - 0.05 * model, 4)


def label(number: int) -> str:
    return HOSTILE[number % len(HOSTILE)] if number % 4 == 1 else f"label {number % 7}"


def activation(model: int, number: int, window: int, at: int) -> float:
    return round(math.sin(number + window + at / 2) * (2 + model), 3)


def columns(model: int) -> dict:
    numbers = range(COUNT)
    values = [excess(model, number) for number in numbers]
    return {
        "layer": whole("16", [number // WIDTH for number in numbers]),
        "neuron": whole("32", [number % WIDTH for number in numbers]),
        "dead": whole("8", [value is None for value in values]),
        "is_universal": whole("8", [value is not None and value > 0.5 for value in values]),
        "mutual_all": whole("8", [number % 3 == 0 for number in numbers]),
        "excess_corr": f32(values),
        "excess_heldout": f32(values),
        "excess_low": f32([value and value - 0.07 for value in values]),
        "excess_high": f32([value and value + 0.08 for value in values]),
        "sparsity": f32([(number * 37 % COUNT) / COUNT for number in numbers]),
        "kurt": f32([3 + number % 11 for number in numbers]),
        "variance_reduction": f32([(number * 13 % 50) / 50 for number in numbers]),
        "family": words([FAMILIES[number % len(FAMILIES)] for number in numbers]),
        "label": words([label(number) for number in numbers]),
        "fires": words([f"more on {label(number)}" for number in numbers]),
        "roles": words([ROLES[number % len(ROLES)] for number in numbers]),
    } | (matched(values) if model == 0 else {})


def matched(values: list) -> dict:
    """The reference's best matches in the other model, each one further."""
    return {
        "match_layer:1": whole("16", [number // WIDTH for number in range(COUNT)]),
        "match_neuron:1": whole("32", [(number + 1) % WIDTH for number in range(COUNT)]),
        "match_corr:1": f32([value and value + 0.08 for value in values]),
    }


def window(model: int, number: int, index: int, strings: list[str]) -> dict:
    tokens = [(number + index + at) % len(strings) for at in range(12)]
    band = "top" if index < 2 else "0.9-0.99"
    return {
        "band": band,
        "rank": index % 2 + 1,
        "row": 10 + index,
        "at": 7,
        "tokens": tokens,
        "activations": [None if at == 0 else activation(model, number, index, at) for at in range(12)],
    }


def unit(model: int, number: int, strings: list[str]) -> dict:
    other, layer, neuron = 1 - model, number // WIDTH, number % WIDTH
    value = excess(model, number)
    match = {"model": other, "rank": 1, "layer": layer, "neuron": (number + 1) % WIDTH, "mutual": True}
    windows = [window(model, number, index, strings) for index in range(4)]
    shared = [
        each | {"others": {str(other): [activation(other, number, index, at) for at in range(12)]}}
        for index, each in enumerate(windows)
    ]
    shown_tokens = range(len(strings)) if number == 2 else range(6)  # one unit fires on all of them
    curve = [
        {"kind": "entropy", "edit": "fix", "value": at, "loss": 3 + at / 10, "entropy": 2 - at / 9, "tokens": 500}
        for at in range(5)
    ]
    told = {
        "layer": layer,
        "neuron": neuron,
        "columns": {
            "excess_corr": value,
            "excess_low": value and round(value - 0.07, 4),
            "excess_high": value and round(value + 0.08, 4),
            "is_universal": value is not None and value > 0.5,
            "sparsity": round((number * 37 % COUNT) / COUNT, 4),
            "family": FAMILIES[number % len(FAMILIES)],
            "label": label(number),
            "dead": value is None,
            "roles": [role for role in [ROLES[number % len(ROLES)]] if role],
        },
        "matches": [
            match | {"corr": value and round(value + 0.08, 4), "heldout": value, "low": value, "high": value},
            match | {"rank": 2, "neuron": (number + 2) % WIDTH, "corr": 0.31},
        ],
        "examples": windows,
        "counterparts": shared,
        "histogram": {"low": [-2, -1, 0, 1], "high": [-1, 0, 1, 2], "counts": [5, 60, 30, 2]},
        "labels": [
            {"label": label(number), "group": "tokens", "previous": False, "variance_reduction": 0.4, "sign": 1},
            {"label": "position", "group": "position", "previous": True, "variance_reduction": 0.1, "sign": -1},
        ],
        "tokens": [{"string": strings[at], "mean": 2.5 - at / 40, "count": 9 + at} for at in shown_tokens],
        "effects": {
            "role": "prediction",
            "class": HOSTILE[0],
            "orientation": 1,
            "top": [[strings[at], 1.5 - at / 10] for at in range(6)],
            "bottom": [[strings[-1 - at], -1 + at / 10] for at in range(6)],
        },
        "interventions": curve,
        "ablations": {"loss_change": 0.012, "total_effect": 0.02, "direct_effect": 0.004, "mediated": 0.8},
        "attention": [{"head_layer": 1, "head": 0, "score": 7.1, "z": 5.4, "pearson_activation_bos": 0.7}],
        "one_to_one": [
            {"match_model": other, "match_layer": 1, "match_neuron": 4, "rank": 2, "corr": 0.41, "cost": 0.1}
        ],
        "functional": [{"match_model": other, "effect_corr": 0.7, "loss_corr": 0.5, "effect_corr_second": 0.2}],
        "positions": {
            "position": list(range(8)),
            "mean": [at / 8 for at in range(8)],
            "firing": [at / 9 for at in range(8)],
        },
        "explanations": [{"text": f"Fires on {HOSTILE[number]}", "by": HOSTILE[1]}, {"text": "Fires."}]
        if number % 2
        else None,
        "scores": scores(other, neuron) if number % 2 else None,
        "neighbours": [
            {"kind": "opposite w_out", "layer": layer, "neuron": (neuron + 5) % WIDTH, "value": -0.8},
            {"kind": "correlated", "layer": layer, "neuron": (neuron + 3) % WIDTH, "value": 0.5},
        ],
    }
    missing = (
        ("matches", "counterparts", "functional", "one_to_one") if model else ()
    )  # only the reference was asked about
    return {key: content for key, content in told.items() if content is not None and key not in missing}


def scores(other: int, neuron: int) -> list[dict]:
    """Of the first of a unit's two explanations, by one scorer; simulation had too few answers."""
    every = {"by": HOSTILE[1], "method": "detection", "scorer": HOSTILE[0], "n_windows": 260, "missing": 4}
    every |= {"low": 0.6, "high": 0.8, "chance": 0.2}
    elsewhere = [
        {"use": use, "score": score, "model": other, "layer": 1, "neuron": (neuron + step) % WIDTH}
        for use, score, step in (("counterpart", 0.61, 1), ("random", 0.23, 2))
    ]
    uses = [{"use": "own", "score": 0.7}, {"use": "another unit's", "score": 0.21}, *elsewhere]
    none = {
        "by": HOSTILE[1],
        "use": "own",
        "method": "simulation",
        "scorer": HOSTILE[0],
        "n_windows": 260,
        "missing": 260,
    }
    return [none, *(every | use for use in uses)]


ALIKE = {"cka": (0.8, 0.7), "cca": (0.25, -0.1), "r2_to_match": (None, None), "r2_from_match": (0.5, 0.4)}


def tables() -> dict:
    families = [(model, family) for model in range(2) for family in FAMILIES]
    profile = [(asker, one, other) for asker in range(2) for one in range(LAYERS) for other in range(LAYERS)]
    steps = [0, 10, 100]
    return {
        "families": {
            "columns": {
                "model": [model for model, _ in families],
                "family": [family for _, family in families],
                "neurons": [16] * len(families),
                "universal": [7] * len(families),
                "excess_mean": [0.43] * len(families),
            }
        },
        "layers": {
            "columns": {
                "asker": [asker for asker, _, _ in profile],
                "model": [asker for asker, _, _ in profile],
                "layer": [one for _, one, _ in profile],
                "match_model": [1 - asker for asker, _, _ in profile],
                "match_layer": [other for _, _, other in profile],
                "fraction": [0.8 if one == other else 0.2 for _, one, other in profile],
            }
        },
        "similarity": {
            "columns": {
                "asker": [0] * 4 * LAYERS**2,
                "model": [0] * 4 * LAYERS**2,
                "layer": [one for one in range(LAYERS) for _ in range(LAYERS)] * 4,
                "match_model": [1] * 4 * LAYERS**2,
                "match_layer": [*range(LAYERS)] * LAYERS * 4,
                "measure": [each for each in ALIKE for _ in range(LAYERS**2)],
                "value": [value for value, _ in ALIKE.values() for _ in range(LAYERS**2)],
                "chance": [0.125] * 4 * LAYERS**2,
                "calibrated": [value for value, _ in ALIKE.values() for _ in range(LAYERS**2)],
                "calibrated_low": [low for _, low in ALIKE.values() for _ in range(LAYERS**2)],
                "calibrated_high": [0.9] * 4 * LAYERS**2,
            }
        },
        "consistency": {
            "columns": {
                "asker": [0],
                "match_model": [1],
                "units": [80],
                "matched": [76],
                "moved": [20],
                "cost": [0.046],
                "mean_corr": [0.56],
                "mean_corr_rotated": [0.23],
                "mutual": [41],
                "mutual_rotated": [12],
                "shared": [60],
                "shared_low": [0.65],
                "shared_high": [0.83],
                "pw_mcc": [0.375],
                "pw_mcc_rotated": [0.25],
            }
        },
        "thresholds": {
            "columns": {
                "asker": [0, 0, 0],
                "threshold": [0.25, 0.5, 0.75],
                "universal": [55, 34, 13],
                "rotated": [3.5, 0, 0],
            }
        },
        "subsets": {
            "columns": {
                "subset": [*HOSTILE, "prose"],
                "model": [0] * 101,
                "neurons": [COUNT] * 101,
                "universal": [20] * 101,
                "excess_median": [0.3] * 101,
            }
        },
        "ensembles": {
            "columns": {
                "model": [0],
                "role": ["prediction"],
                "nearest": [False],
                "class": [HOSTILE[0]],
                "neurons": [3],
                "corr_best": [0.3],
                "corr_sum": [0.4],
            }
        },
        "interventions": {
            "columns": {
                "model": [0] * 5,
                "layer": [1] * 5,
                "neuron": [2] * 5,
                "kind": ["entropy"] * 5,
                "edit": ["fix"] * 5,
                "value": [0, 1, 2, 3, 4],
                "loss": [3, 3.1, 3.2, 3.3, 3.4],
                "entropy": [2, 1.9, 1.8, 1.7, 1.6],
            }
        },
        "ablations": {
            "columns": {
                "model": [0],
                "layer": [1],
                "neuron": [2],
                "kind": ["entropy"],
                "mediated": [0.8],
                "role": ["entropy"],
            }
        },
        "functional": {
            "columns": {
                "asker": [0],
                "model": [0],
                "layer": [0],
                "neuron": [1],
                "match_model": [1],
                "match_layer": [0],
                "match_neuron": [2],
                "corr": [0.9],
                "effect_corr": [0.7],
                "effect_corr_second": [0.2],
            }
        },
        "convergence": {
            "columns": {"asker": [0, 0, 0], "tokens": [1000, 10000, 100000], "universal": [10, 30, 34]},
        },
        "dynamics": {
            "checkpoints": {
                "columns": {
                    "checkpoint": [str(step) for step in steps],
                    "step": steps,
                    "universal": [0, 12, 34],
                    "fraction": [0, 0.15, 0.425],
                    "persistence": [None, 0.5, 0.8],
                }
            }
        },
    }


def study(name: str, title: str) -> dict:
    return {
        "id": name,
        "name": title,
        "title": title,
        "opening": ["Which units does every other model find again?", f"34 of 80 are universal. {HOSTILE[0]}"],
        "together": [f"The 34 are worth 0.70 nats. {HOSTILE[0]}"],
        "facts": [
            {"label": "universal", "text": "34 of 80", "term": "universal"},
            {"label": "median excess", "text": "0.43", "term": "excess"},
            {"label": HOSTILE[5], "text": HOSTILE[1], "term": None},
        ],
        "reference": 0,
        "models": [
            {
                "name": model,
                "family": "GPT2",
                "layers": LAYERS,
                "widths": [WIDTH] * LAYERS,
                "units": COUNT,
                "d_model": 16,
                "vocabulary": 50,
                "dead": 1,
                "universal": 34,
                "digest": "ab" * 32,
                "asks": number == 0,
            }
            for number, model in enumerate(MODELS)
        ],
        "subsets": [HOSTILE[1], "prose"],
        "threshold": 0.5,
        "spans": False,
        "absent": {
            "explanations": "Nobody has written explanations: uneurons explain RUN does. " + HOSTILE[3],
            "functional": "Only universal units are compared by what they do: the 3 of highest excess, of 34.",
            "functional:universal": "Of the 34 universal units the 3 of highest excess are compared by what they do; "
            "this one is not among them.",
            "functional:elsewhere": "Only units of the reference are compared by what they do. " + HOSTILE[1],
        },
        "settings": {"data": HOSTILE[1], "seed": "0"},
    }


PAGES = ["study", "families", "roles", "layers", "models", "subsets", "dynamics", "explanations"]


def explained(text: str) -> dict:
    """Tables of explanations and their sources, for a study that has some."""
    row = {
        "model": 1, "layer": 1, "neuron": 3, "source": HOSTILE[1], "explanation": text, "method": "detection", "scorer": "s",
        "explanation_score": 0.7, "explanation_low": 0.6, "explanation_high": 0.8, "explanation_chance": 0.2,
        "on_counterparts": 0.61, "on_random": 0.23,
    }  # fmt: skip
    source = {
        "source": HOSTILE[1], "scorer": "s", "method": "detection", "units": 40, "mean_score": 0.65, "mean_score_low": 0.5,
        "mean_score_high": 0.75, "explanation_chance": 0.2, "label_sentence": 0.31, "another_sentence": None,
        "empty_sentence": 0.22, "on_counterparts": 0.6, "on_random": 0.24, "carried": 0.88, "carried_low": 0.8,
        "carried_high": 0.95,
    }  # fmt: skip
    rows = {"explanations": row, "explanation_sources": source}
    return {name: {"columns": {key: [value] for key, value in row.items()}} for name, row in rows.items()}


def write_hand_site(root: Path, studies: int = 1) -> Path:
    """The whole site under `root`; of several studies each but the first has a hostile title too."""
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(STATIC), autoescape=True)
    names = ["one", "two"][:studies]
    strings = [f" word{at}" for at in range(20)] + HOSTILE + ["\n", "\t", " "]

    def write(path: str, text: str) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    for template in STATIC.glob("[!_]*.html"):
        write(template.name, templates.get_template(template.name).render())
    shutil.copytree(STATIC, root / "static", ignore=shutil.ignore_patterns("*.html"), dirs_exist_ok=True)
    titles = {"one": "Two seeds", "two": HOSTILE[1]}
    listed = [{"id": name, "name": name, "title": titles[name], "models": MODELS, "pages": PAGES} for name in names]
    write("data/site.js", statement("site", {"format": 1, "studies": listed, "terms": TERMS, "served": False}))
    for name in names:
        files = {
            "study": study(name, titles[name]),
            "tables": tables() | (explained(HOSTILE[2]) if name == "two" else {}),
        }
        for model in range(2):
            files[f"units/{model}"] = {"count": COUNT, "columns": columns(model)}
            for shard in range(0, COUNT, 64):
                units = [unit(model, number, strings) for number in range(shard, min(shard + 64, COUNT))]
                files[f"unit/{model}/{shard // 64}"] = {"first": shard, "strings": strings, "units": units}
            files[f"search/{model}"] = {
                "tokens": sorted(strings),
                "starts": packed("<u4", list(range(len(strings) + 1))),
                "units": packed("<u4", list(range(len(strings)))),
            }
        for path, data in files.items():
            write(f"data/{name}/{path}.js", statement(f"{name}/{path}", data))
    return root


if __name__ == "__main__":
    import sys

    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    print(write_hand_site(target, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
