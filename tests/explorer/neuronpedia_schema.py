"""Neuronpedia's export layout, written down from its documentation.

Folders and files: https://docs.neuronpedia.org/api-and-data/exports.  Fields and types: `apps/webapp/prisma/schema.prisma`
of github.com/hijohnnylin/neuronpedia (commit 008d504), models Neuron, Activation, Explanation, Model, SourceRelease,
SourceSet, Source.  What an import makes of them (its `apps/webapp/lib/db/import.ts`): the columns of a file are those of its
first line; NUL is replaced; columns that are not there get the database's defaults; references must lead somewhere.
"""

import gzip
import json
import re
from pathlib import Path

TEXT, WHOLE, NUMBER, FLAG = "String", "Int", "Float", "Boolean"
NEURON = {
    "modelId": TEXT, "layer": TEXT, "index": TEXT, "sourceSetName": "String?", "creatorId": "String?",
    "createdAt": "DateTime", "maxActApprox": "Float?", "hasVector": FLAG, "vector": "Float[]", "vectorLabel": "String?",
    "vectorDefaultSteerStrength": "Float?", "hookName": "String?", "topkCosSimIndices": "Int[]",
    "topkCosSimValues": "Float[]", "neuron_alignment_indices": "Int[]", "neuron_alignment_values": "Float[]",
    "neuron_alignment_l1": "Float[]", "correlated_neurons_indices": "Int[]", "correlated_neurons_pearson": "Float[]",
    "correlated_neurons_l1": "Float[]", "correlated_features_indices": "Int[]", "correlated_features_pearson": "Float[]",
    "correlated_features_l1": "Float[]", "neg_str": "String[]", "neg_values": "Float[]", "pos_str": "String[]",
    "pos_values": "Float[]", "frac_nonzero": NUMBER, "freq_hist_data_bar_heights": "Float[]",
    "freq_hist_data_bar_values": "Float[]", "logits_hist_data_bar_heights": "Float[]",
    "logits_hist_data_bar_values": "Float[]", "decoder_weights_dist": "Float[]", "umap_cluster": "Int?",
    "umap_log_feature_sparsity": "Float?", "umap_x": "Float?", "umap_y": "Float?",
}  # fmt: skip
ACTIVATION = {
    "id": TEXT, "tokens": "String[]", "dataIndex": "String?", "index": TEXT, "layer": TEXT, "modelId": TEXT,
    "dataSource": "String?", "maxValue": NUMBER, "maxValueTokenIndex": WHOLE, "minValue": NUMBER, "values": "Float[]",
    "dfaValues": "Float[]", "dfaTargetIndex": "Int?", "dfaMaxValue": "Float?", "zQIndices": "Int[]", "zKIndices": "Int[]",
    "zValues": "Float[]", "creatorId": TEXT, "createdAt": "DateTime", "lossValues": "Float[]",
    "logitContributions": "String?", "binMin": "Float?", "binMax": "Float?", "binContains": "Float?",
    "qualifyingTokenIndex": "Int?",
}  # fmt: skip
EXPLANATION = {
    "id": TEXT, "modelId": TEXT, "layer": TEXT, "index": TEXT, "description": TEXT, "authorId": TEXT,
    "triggeredByUserId": "String?", "notes": "String?", "scoreV1": NUMBER, "scoreV2": "Float?", "umap_x": "Float?",
    "umap_y": "Float?", "umap_cluster": "Int?", "umap_log_feature_sparsity": "Float?", "typeName": "String?",
    "explanationModelName": "String?", "createdAt": "DateTime", "updatedAt": "DateTime",
}  # fmt: skip
MODEL = {
    "id": TEXT, "displayNameShort": TEXT, "displayName": TEXT, "creatorId": TEXT, "tlensId": "String?",
    "openRouterId": "String?", "dimension": "Int?", "thinking": FLAG, "visibility": "Visibility",
    "inferenceEnabled": FLAG, "instruct": FLAG, "layers": WHOLE, "neuronsPerLayer": WHOLE, "createdAt": "DateTime",
    "owner": TEXT, "updatedAt": "DateTime", "website": "String?",
}  # fmt: skip
RELEASE = {
    "name": TEXT, "visibility": "Visibility", "isNewUi": FLAG, "featured": FLAG, "description": TEXT,
    "descriptionShort": "String?", "urls": "String[]", "creatorEmail": "String?", "creatorName": TEXT,
    "creatorNameShort": "String?", "creatorId": TEXT, "createdAt": "DateTime",
}  # fmt: skip
SOURCE_SET = {
    "modelId": TEXT, "name": TEXT, "hasDashboards": FLAG, "allowInferenceSearch": FLAG, "visibility": "Visibility",
    "description": TEXT, "type": TEXT, "creatorName": TEXT, "urls": "String[]", "creatorEmail": "String?",
    "creatorId": TEXT, "releaseName": "String?", "createdAt": "DateTime",
}  # fmt: skip
SOURCE = {
    "id": TEXT, "modelId": TEXT, "hasDashboards": FLAG, "inferenceEnabled": FLAG, "hfRepoId": "String?",
    "hfFolderId": "String?", "visibility": "Visibility", "setName": TEXT, "creatorId": TEXT, "num_prompts": "Int?",
    "num_tokens_in_prompt": "Int?", "dataset": "String?", "notes": "String?", "createdAt": "DateTime",
}  # fmt: skip
REQUIRED = {  # no default, not optional
    "features": {"modelId", "layer", "index"},
    "activations": {"modelId", "layer", "index", "tokens", "values", "maxValue", "minValue", "maxValueTokenIndex", "creatorId"},
    "explanations": {"modelId", "layer", "index", "description", "authorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "release": {"name", "description", "urls", "creatorName", "creatorId"},
    "sourceset": {"modelId", "name", "description", "creatorName", "urls", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
}  # fmt: skip
FIELDS = {
    "features": NEURON, "activations": ACTIVATION, "explanations": EXPLANATION,
    "model": MODEL, "release": RELEASE, "sourceset": SOURCE_SET, "source": SOURCE,
}  # fmt: skip
CHECKS = {
    "String": lambda v: isinstance(v, str) and "\0" not in v and v.encode("utf-8") is not None,
    "Int": lambda v: type(v) is int and abs(v) < 2**31,
    "Float": lambda v: type(v) in (int, float) and abs(v) < float("inf"),
    "Boolean": lambda v: type(v) is bool,
    "Visibility": lambda v: v in ("PUBLIC", "UNLISTED", "PRIVATE"),
}
MODEL_ID = re.compile(r"[a-z0-9_-]{1,128}")  # its pattern, after it makes letters small
BATCH = re.compile(r"batch-(\d+)\.jsonl\.gz")


def require_value(kind: str, value: object) -> None:
    if kind.endswith("?"):
        assert value is None or CHECKS[kind[:-1]](value), (kind, value)
    elif kind.endswith("[]"):
        assert isinstance(value, list), (kind, value)
        assert all(map(CHECKS[kind[:-2]], value)), (kind, value)
    else:
        assert CHECKS[kind](value), (kind, value)


def require_line(table: str, line: dict) -> None:
    assert REQUIRED[table] <= line.keys() <= FIELDS[table].keys(), (table, line.keys())
    for name, value in line.items():
        require_value(FIELDS[table][name], value)


def lines_of(path: Path) -> list[dict]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert content.endswith(b"\n")
    assert content.isascii()
    return [json.loads(line) for line in content.decode().splitlines()]


def batches(folder: Path) -> list[dict]:
    """The lines of a folder's batches, which are numbered from 0 where there are any."""
    if not folder.exists():
        return []
    files = {int(BATCH.fullmatch(path.name)[1]): path for path in folder.iterdir()}
    found = []
    for number in sorted(files):
        lines = lines_of(files[number])
        assert lines, "an import reads the first line of every file"
        assert {tuple(line) for line in lines} == {tuple(lines[0])}, "an import takes the columns of the first line"
        found += lines
    return found


def require_export(folder: Path) -> dict[tuple[str, str], dict[str, list[dict]]]:
    """Check every file and line of an export; returns the lines by model, source and table."""
    exported, ids = {}, set()
    for model in sorted(folder.iterdir()):
        assert MODEL_ID.fullmatch(model.name)
        for source in sorted(model.iterdir()):
            assert {path.name for path in source.iterdir()} <= {
                "model.jsonl", "release.jsonl", "sourceset.jsonl", "source.jsonl", "features", "activations", "explanations",
            }  # fmt: skip
            found = {name: lines_of(source / f"{name}.jsonl") for name in ("model", "release", "sourceset", "source")}
            assert all(len(lines) == 1 for lines in found.values())
            found |= {name: batches(source / name) for name in ("features", "activations", "explanations")}
            for table, lines in found.items():
                for line in lines:
                    require_line(table, line)
            (about,), (release,), (source_set,), (one,) = (
                found[n] for n in ("model", "release", "sourceset", "source")
            )
            assert (about["id"], one["id"]) == (model.name, source.name)
            assert one["modelId"] == source_set["modelId"] == model.name
            assert one["setName"] == source_set["name"]
            assert source_set["releaseName"] == release["name"]
            indices = [line["index"] for line in found["features"]]
            assert indices == [str(number) for number in range(about["neuronsPerLayer"])]
            for table in ("features", "activations", "explanations"):
                for line in found[table]:
                    assert (line["modelId"], line["layer"]) == (model.name, source.name)
                    assert int(line["index"]) < about["neuronsPerLayer"]
            for line in found["activations"]:
                values = line["values"]
                assert len(values) == len(line["tokens"]) > 0
                assert (line["maxValue"], line["minValue"]) == (max(values), min(values))
                assert values[line["maxValueTokenIndex"]] == line["maxValue"]
            for line in found["features"]:
                assert len(line["pos_str"]) == len(line["pos_values"])
                assert len(line["neg_str"]) == len(line["neg_values"])
                assert len(line["freq_hist_data_bar_heights"]) == len(line["freq_hist_data_bar_values"])
                assert 0 <= line["frac_nonzero"] <= 1
            for line in found["explanations"]:
                assert line["typeName"] is None, "a reference to a row that a database may lack"
            new = [line["id"] for table in ("activations", "explanations") for line in found[table]]
            assert not ids & set(new)
            assert len(set(new)) == len(new)
            ids |= set(new)
            exported[model.name, source.name] = found
    return exported
