"""Models, tokenizers and names that are almost right: each is refused by its own name, and nothing is left behind."""

import json
import shutil
import threading

import pytest
import torch
from conftest import save_tiny, small_tokenizer, some_text, tiny_network

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import CheckpointError, ConfigError, MissingFileError, TokenizerError
from universal_neurons.models import load_tokenizer
from universal_neurons.models.tokenizer import require_same_ids_every_time


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("whole") / "m")


def copied(whole, tmp_path, **changes):
    """A copy of the model whose config.json says something else."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["", "\udcff", "a\0b"])
def test_check_refuses_a_name_that_can_be_none(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", name])
    assert stopped.value.code == 2
    assert "Error" in capsys.readouterr().err


def test_a_model_in_memory_needs_a_name():
    with pytest.raises(ConfigError, match="needs a name"):
        un.Model(tiny_network("gpt2"), "")


def test_quantised_weights_in_memory_are_refused():
    quantised = torch.ao.quantization.quantize_dynamic(tiny_network("llama"), {torch.nn.Linear}, torch.qint8)
    with pytest.raises(CheckpointError, match="weights are quantised"):
        un.Model(quantised, "quantised")


def test_a_tokenizer_that_draws_lots_is_refused(whole, tmp_path, text_file):
    folder = shutil.copytree(whole, tmp_path / "drops")
    description = json.loads((folder / "tokenizer.json").read_text())
    description["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="draws lots"):
        un.load_model(str(folder))
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    model = un.Model(tiny_network("gpt2"), "m", tokenizer=tokenizer)
    config = un.StudyConfig(data=str(text_file), out=str(tmp_path / "o"), stages=("statistics",))
    with pytest.raises(TokenizerError, match="draws lots"):
        un.run_study(config, models=[model], progress=False)
    assert not (tmp_path / "o").exists()
    require_same_ids_every_time(small_tokenizer())


def test_what_is_wrong_with_a_tokenizer_stands_on_lines_of_its_own(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "newer")
    description = json.loads((folder / "tokenizer.json").read_text())
    description["pre_tokenizer"] = {"type": "NewKind"}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer(folder)
    assert [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]] == ["given", "wanted", "fix"]


@pytest.mark.parametrize("changes", [{"n_head": 7}, {"activation_function": "new"}, {"n_embd": "wide"}])
def test_a_configuration_that_builds_no_model_is_the_one_to_mend(whole, tmp_path, changes):
    with pytest.raises(CheckpointError, match=r"config\.json") as refused:
        un.load_model(str(copied(whole, tmp_path, **changes)))
    assert "mend config.json" in refused.value.fix


def test_an_adapter_beside_a_configuration_and_a_pointer_of_git_are_named(whole, tmp_path):
    folder = copied(whole, tmp_path)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="pointer of git-lfs"):
        un.load_model(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    with pytest.raises(MissingFileError, match="an adapter whose model is not there"):
        un.load_model(str(folder))


def test_models_load_in_threads_side_by_side(whole):
    failures = []

    def load():
        try:
            un.load_model(str(whole))
        except CheckpointError as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_sketch_is_known_by_its_name_and_can_be_checked(whole, tmp_path, capsys):
    (tmp_path / "t.txt").write_text(some_text(2000))
    settings = ["--data", str(tmp_path / "t.txt"), "--context", "32", "--max-tokens", "2000", "--group-size", "4"]
    with pytest.raises(SystemExit):
        main(["sketch", str(whole), *settings, "--out", str(tmp_path / "a.st")])
    assert "ends in .safetensors" in capsys.readouterr().err
    sketch = tmp_path / "a.safetensors"
    main(["sketch", str(whole), *settings, "--out", str(sketch)])
    main(["check", str(sketch)])
    assert "a whole sketch of m" in " ".join(capsys.readouterr().out.split())
    content = bytearray(sketch.read_bytes())
    content[-5] ^= 1
    sketch.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(sketch)])
    assert stopped.value.code == 2
    assert "damaged" in capsys.readouterr().err
