"""Models spread over devices by `accelerate`: here memory and disk, which is how far a CPU goes."""

import pytest
import torch
from conftest import save_tiny, tiny_network

import universal_neurons as un
from universal_neurons.errors import CheckpointError, ConfigError, MissingExtraError
from universal_neurons.interventions.heads import attention_parts
from universal_neurons.models import spread

accelerate = pytest.importorskip("accelerate", reason="the extra big spreads models")
IDS = torch.arange(1, 41).view(2, 20)
PARTS = {
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f", "lm_head"],
    "llama": [
        "model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head",
    ],
}  # fmt: skip


def split(family: str, *on_disk: str) -> dict[str, str]:
    """A device for every part: the disk for some, memory for the others."""
    return {part: "disk" if part in on_disk else "cpu" for part in PARTS[family]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "on_disk"), [
    ("gpt2", ["transformer.h.1"]), ("gpt2", PARTS["gpt2"]), ("llama", ["model.layers.0", "lm_head"]),
])  # fmt: skip
def test_a_spread_model_computes_what_it_computes_whole(tmp_path, family, on_disk, dtype):
    folder = str(save_tiny(tmp_path / "m", family, tie_word_embeddings=False))
    whole = un.load_model(folder, dtype=dtype)
    model = un.load_model(folder, dtype=dtype, device_map=split(family, *on_disk))
    assert model.spread
    assert any(tensor.is_meta for tensor in model.hf.parameters())
    for pre in (False, True):
        activations = model.activations(IDS, pre_activations=pre)
        torch.testing.assert_close(activations, whole.activations(IDS, pre_activations=pre), rtol=0, atol=0)
    torch.testing.assert_close(model.logits(IDS), whole.logits(IDS), rtol=0, atol=0)
    assert model.digest == whole.digest
    assert model.n_bytes < whole.n_bytes
    assert any(note.startswith("spread over") and "disk" in note for note in model.notes)


def test_memory_limits_send_the_rest_to_the_disk(folders):
    model = un.load_model(str(folders[0]), device_map="auto", max_memory={"cpu": "75KB"})
    assert model.spread
    whole = un.load_model(str(folders[0]), device_map="auto")
    assert not whole.spread
    torch.testing.assert_close(model.activations(IDS), whole.activations(IDS), rtol=0, atol=0)


def test_interventions_work_and_what_reads_weights_is_refused(folders):
    whole = un.load_model(str(folders[0]))
    model = un.load_model(str(folders[0]), device_map="auto", max_memory={"cpu": "75KB"})
    found = []
    for one in (whole, model):
        with un.intervene(one, ["L1.3"], "zero"):
            found.append(one.logits(IDS))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert not torch.equal(found[1], whole.logits(IDS))
    with pytest.raises(ConfigError, match="processed weights need it on one"):
        un.processed_weights(model)
    with pytest.raises(ConfigError, match="heads need it on one"):
        attention_parts(model)


def test_numbers_that_are_on_the_disk_are_checked_too(tmp_path):
    network = tiny_network("gpt2")
    network.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    network.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"NaN(.|\n)*h\.1\.mlp\.c_fc\.weight"):
        un.load_model(str(tmp_path / "m"), device_map=split("gpt2", "transformer.h.1"))


def test_activations_of_another_device_are_handed_over_on_the_studys():
    """The meta device stands in for another: what is handed over is asked to be there."""
    network = tiny_network("gpt2")
    model = un.Model(network, "elsewhere", device="meta")
    seen = {}
    with torch.inference_mode(), model.capturing(seen.__setitem__):
        network.transformer(input_ids=IDS)
    assert {layer: value.device.type for layer, value in seen.items()} == {0: "meta", 1: "meta"}


def studied(out, models, text_file, **given):
    config = {
        "data": str(text_file), "max_tokens": 2048, "context": 32, "draws": 2, "out": str(out),
    }  # fmt: skip
    return un.run_study(un.StudyConfig(models=models, **config | given), progress=False)


def test_a_study_of_spread_models_has_the_same_tables(tmp_path, folders, text_file):
    models = tuple(map(str, folders[:2]))
    stages = ("statistics", "labels", "universality", "similarity")
    whole = studied(tmp_path / "whole", models, text_file, stages=stages)
    parted = studied(tmp_path / "parted", models, text_file, device_map="auto", max_memory="cpu=75KB")
    assert tuple(parted.config.stages) == stages
    for table in sorted(path.name for path in whole.path.glob("*.parquet")):
        assert (whole.path / table).read_bytes() == (parted.path / table).read_bytes(), table
    assert "device_map" not in parted.manifest["config"]


@pytest.mark.parametrize(("given", "named"), [
    ({"stages": ("weights", "statistics")}, "weights"),
    ({"stages": ("universality",), "null": "untrained"}, "the untrained null"),
])  # fmt: skip
def test_what_needs_weights_on_one_device_is_refused(tmp_path, folders, text_file, given, named):
    with pytest.raises(ConfigError, match=f"spread over devices, and {named}"):
        studied(
            tmp_path / "r",
            tuple(map(str, folders[:2])),
            text_file,
            device_map="auto",
            max_memory=("cpu=75KB",),
            **given,
        )


@pytest.mark.parametrize(("device_map", "max_memory", "part"), [
    ("everywhere", None, "auto, balanced"),
    ({"transformer": "cpu"}, None, "no device for"),
    ({"": "cpu", "transformer.h.9": "disk"}, None, "no part of the model"),
    ({"": "nodevice"}, None, "'nodevice' is not there"),
    ("auto", {"cpu": "much"}, "cpu=much"),
    ("auto", {"gpu": "1GiB"}, "gpu=1GiB"),
    (None, {"cpu": "1GiB"}, "without a device_map"),
])  # fmt: skip
def test_places_that_are_none(tmp_path, device_map, max_memory, part):
    folder = save_tiny(tmp_path / "m", tie_word_embeddings=False)
    with pytest.raises(ConfigError) as caught:
        un.load_model(str(folder), device_map=device_map, max_memory=max_memory)
    assert part in str(caught.value)


def test_without_accelerate_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setattr(spread, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"universal-neurons\[big\]"):
        un.load_model(str(folders[0]), device_map="auto")


def test_a_plain_copy_leaves_the_spread_part_as_it_was(folders):
    model = un.load_model(str(folders[0]), device_map=split("gpt2", "transformer.h.0", "transformer.h.1"))
    before = model.activations(IDS)
    block = model.blocks[0]
    plain = spread.plain_copy(block, torch.device("cpu"))
    assert not any(tensor.is_meta for tensor in plain.parameters())
    assert all(tensor.is_meta for tensor in block.parameters())
    assert not any(hasattr(module, "_hf_hook") for module in plain.modules())
    torch.testing.assert_close(model.activations(IDS), before, rtol=0, atol=0)


def test_experts_on_the_disk_are_refused(tmp_path):
    folder = str(save_tiny(tmp_path / "m", "olmoe"))
    places = dict.fromkeys(PARTS["llama"], "cpu") | {"model.layers.1": "disk"}
    with pytest.raises(ConfigError, match="experts are neither in memory nor on a device"):
        un.load_model(folder, device_map=places)
