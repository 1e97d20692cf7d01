"""Tiny models of every family, a tokenizer and texts to run them on."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ |= {  # tests run side by side, and threads that wait for each other take longer than one does
    "OMP_NUM_THREADS": "1",
    "UNEURONS_FLOAT32": "torch",  # oneDNN takes 0.4 ms for each new shape, and tiny models have many (`by_onednn`)
    "POLARS_MAX_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import cheap_checks  # noqa: F401  before the package is imported
import numpy as np
import pytest
import torch
import verified_once  # noqa: F401  studies of one tiny model run it once to see what it is
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from universal_neurons.cli import main
from universal_neurons.config import Settings, StudyConfig
from universal_neurons.models import Model, quiet_transformers
from universal_neurons.processor import onednn_is_faster
from universal_neurons.report import figures
from universal_neurons.role_settings import RoleSettings
from universal_neurons.study import decide
from universal_neurons.study.resolve import resolve


def pytest_addoption(parser):
    parser.addoption("--mutations", type=int, default=1000, help="of files, by the fuzzer (tests/fuzz)")
    parser.addoption("--fuzz-seed", type=int, default=0, help="which mutations the fuzzer tries")
    parser.addoption("--cuda-stand-in", metavar="DEVICE", help="run the tests that need CUDA on this device instead")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay together, so that what they share is made once."""
    if config.getvalue("dist") == "load":
        from xdist.scheduler import LoadFileScheduling

        config.option.loadscopereorder = False
        return LoadFileScheduling(config, log)
    return None


def device_of(config) -> str | None:
    """What the tests marked `cuda` run on: where there is no GPU, and none was asked for by `-m cuda`, on a CPU."""
    if stand_in := config.getoption("--cuda-stand-in"):
        return stand_in
    if torch.cuda.is_available():
        return "cuda"
    return None if config.option.markexpr else "cpu"


LONG = (  # a minute each, or nearly: begun first, so that no worker is left with one at the end
    "tests/benchmarks/",
    "tests/study/test_estimate.py",
    "tests/test_tutorials.py",
    "tests/fuzz/",
    "tests/study/test_study.py",
    "tests/report/test_pages.py",
    "tests/passes/test_cluster.py",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)))
    if device_of(config) is not None:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device, and no --cuda-stand-in"))


@pytest.fixture(scope="session")
def device(request) -> str:
    """What the tests marked `cuda` run on."""
    return device_of(request.config)


VOCABULARY, CONTEXT = 1024, 64
FEW_ROLES = RoleSettings(tokens=512, values=(0.0, 2.0), controls=3, attention_pairs=2, distances=(4, 8), ablated=4)
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": CONTEXT},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "llama": {},
    "mistral": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "smollm3": {"num_key_value_heads": 1},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bert": {},
}

FEW_EXPERTS = {"hidden_size": 32, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
MIXTURES = {  # two layers of experts, or one and a dense one
    "mixtral": FEW_EXPERTS | {"intermediate_size": 16, "num_local_experts": 4},
    "olmoe": FEW_EXPERTS | {"intermediate_size": 16},
    "qwen2_moe": FEW_EXPERTS
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
    "qwen3_moe": FEW_EXPERTS | {"moe_intermediate_size": 16, "head_dim": 8, "decoder_sparse_step": 2},
    "gpt_oss": FEW_EXPERTS | {"intermediate_size": 16, "num_local_experts": 4, "head_dim": 8},
}


def tiny_network(family: str, seed: int = 0, **changes):
    """A random Hugging Face model whose norms and biases are random too, so that nothing holds by accident."""
    common = {k: v for k, v in COMMON.items() if not (family == "opt" and k == "intermediate_size")}
    if family == "gpt2":
        common = {k: COMMON[k] for k in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
    torch.manual_seed(seed)
    loader = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    with quiet_transformers():
        return random_norms(
            loader.from_config(AutoConfig.for_model(family, **common | (FAMILIES | MIXTURES)[family] | changes))
        )


def random_norms(network):
    """The network, evaluating, with norms and biases that are random, so that nothing holds by accident."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1 or name.endswith("_bias"):  # experts' biases stand in one matrix
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("bias" not in name))
    return network.eval().requires_grad_(False)


def tiny_model(family: str = "gpt2", seed: int = 0, name: str | None = None, **changes) -> Model:
    return Model(tiny_network(family, seed, **changes), name or f"{family}-{seed}", tokenizer=small_tokenizer())


def alike_models(names: Sequence[str]) -> list[Model]:
    """One network, and others that are like it, by these names."""
    made = [tiny_model("gpt2", 0, name) for name in names]
    for seed, model in enumerate(made[1:], start=1):
        for parameter in model.hf.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        model.digest = f"{seed:064}"
    return made


def settled(**given) -> Settings:
    """The settings that these make of a study of models that read rows of any length."""
    reader = tiny_model()
    reader.context = 2**20
    return resolve(decide(StudyConfig(**given), 2), [reader])


def model_on(device: str, family: str = "gpt2", seed: int = 0, **changes) -> Model:
    """The tiny model on a device."""
    network = tiny_network(family, seed, **changes).to(device)
    return Model(network, f"{family}-{seed}", tokenizer=small_tokenizer())


def small_tokenizer():
    """A byte-level BPE of 1 024 tokens that stays the same whatever is bundled: tests know its tokens."""
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(Path(__file__).parent / "tokenizer")


def save_tiny(folder: Path, family: str = "gpt2", seed: int = 0, **changes) -> Path:
    """A tiny model as an ordinary folder with a tokenizer."""
    with quiet_transformers():
        tiny_network(family, seed, **changes).save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
    return folder


SLOW = ("torch", "transformers", "scipy", "sklearn", "matplotlib", "pyarrow", "pandas", "datasets", "spacy", "ray")


def require_light(*commands: Sequence[object], code: str = "", without: Sequence[str] = SLOW) -> str:
    """What a process of its own prints that runs commands, or code, and imports nothing of `without`."""
    words = [list(map(str, command)) for command in commands]
    lines = f"import sys\nfrom universal_neurons.cli import main\nfor words in {words!r}:\n    main(words)\n{code}"
    lines += f"\nassert not set({without!r}) & set(sys.modules), set({without!r}) & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exit_code(*arguments) -> int:
    """What the command ends with."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
]


def some_text(words: int = 4000, seed: int = 0) -> str:
    chooser = random.Random(seed)
    return " ".join(
        chooser.choice(WORDS) + chooser.choice(["", "", "", "", ",", ".\n", "!", " 12"]) for _ in range(words)
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Annotations of other runs stay out."""
    os.environ["UNIVERSAL_NEURONS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_disks():
    """What is synced is in order, but no test waits until a disk has it: none could tell, short of a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        yield


@pytest.fixture
def by_onednn(monkeypatch):
    """Products as studies make them on this processor, by oneDNN where that is faster."""
    monkeypatch.delenv("UNEURONS_FLOAT32")
    onednn_is_faster.cache_clear()
    yield
    monkeypatch.undo()
    onednn_is_faster.cache_clear()


@pytest.fixture
def few_figures(monkeypatch):
    """Reports show one figure, for tests of what is around it: drawing all of them takes longer than a tiny study."""

    def one(store):
        drawn = store.has("convergence")
        return {"convergence": figures.CONVERGENCE.of(store, store.models[0])} if drawn else {}

    monkeypatch.setattr("universal_neurons.report.figures.study_figures", one)


@pytest.fixture
def svg_only(monkeypatch):
    """Reports draw their figures once, as SVG, and write no picture as PNG: it takes as long again."""
    draw_svg_only(monkeypatch)


def draw_svg_only(patch: pytest.MonkeyPatch) -> None:
    """What `svg_only` does, while a patch is open."""
    render = figures.render
    patch.setattr(figures, "render", lambda figure, kind: render(figure, kind) if kind == "svg" else b"")


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def few_roles(tmp_path_factory) -> Path:
    """A file of settings in which little is tried out."""
    path = tmp_path_factory.mktemp("settings") / "few.yaml"
    path.write_text(yaml.safe_dump({"roles": FEW_ROLES.model_dump(mode="json")}))
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(some_text(6000))
    return path


@pytest.fixture(scope="session")
def long_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text(some_text(60_000, 1))
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> list[Path]:
    """Three tiny GPT-2 folders, different seeds."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny(root / f"m{seed}", seed=seed) for seed in range(3)]


ODD = "[/red]$\\frac{1}{$$\x1b[31m\0\u202e:smile:\nb<i>"
ODD_NAMES = (f"_a/b{ODD}", "_" + "W" * 300)
ODD_SUBSETS = ("[bold]$$", "_\x9b[2J\u2028")


@pytest.fixture(scope="session")
def odd_store(tmp_path_factory):
    """A study whose models and subsets have names that terminals, figures, pages and file systems take badly."""
    from universal_neurons import StudyConfig, run_study
    from universal_neurons.text import TokenDataset

    chooser = random.Random(0)
    pieces = [(ODD_SUBSETS[row % 2], np.array(chooser.choices(range(1, VOCABULARY), k=63))) for row in range(80)]
    tokens = TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0, 7))
    models = [tiny_model("gpt2", seed, name) for seed, name in enumerate(ODD_NAMES)]
    config = StudyConfig(
        out=str(tmp_path_factory.mktemp("odd") / "<b>$x$"), pairs="all", subset=("all",), roles=FEW_ROLES,
        labels=("tokens", "subsets"), draws=2, top_k=2,
    )  # fmt: skip
    return run_study(config, models=models, tokens=tokens, progress=False)
