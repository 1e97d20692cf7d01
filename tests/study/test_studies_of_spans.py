"""Studies of models whose tokenizers differ: planted truth, and float64 NumPy on pooled activations."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from conftest import quiet_transformers, small_tokenizer, some_text, tiny_network
from described import require_described
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from universal_neurons import Model, StudyConfig, make_sketch, run_study, study_roles
from universal_neurons.errors import ConfigError, SketchError, TokenizerError
from universal_neurons.features import counted_positions, inputs_of
from universal_neurons.matching.baselines import rotation
from universal_neurons.report import write_report
from universal_neurons.report.summary import plain_summary
from universal_neurons.study import decide
from universal_neurons.study.estimate import estimate
from universal_neurons.study.memory import label_bytes
from universal_neurons.study.resolve import resolve
from universal_neurons.text import Passages, TokenDataset

UNIVERSALITY = ("universality",)
WORDS = 200


def study(tmp_path, networks, data, **settings):
    given = {"context": 32, "draws": 2, "max_tokens": 30_000, "stages": UNIVERSALITY} | settings
    config = StudyConfig(data=str(data), out=str(tmp_path / "run"), **given)
    return run_study(config, models=networks, progress=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("spans") / "text.jsonl"
    lines = [json.dumps({"text": some_text(150, seed), "subset": "ab"[seed % 2]}) for seed in range(40)]
    path.write_text("\n".join(lines))
    return path


def renumbered(order):
    """The small tokenizer with its ids in another order: token n becomes order[n]."""
    plain = small_tokenizer()
    parts = json.loads(plain.backend_tokenizer.to_str())
    parts["model"]["vocab"] = {token: int(order[n]) for token, n in parts["model"]["vocab"].items()}
    for token in parts["added_tokens"]:
        token["id"] = int(order[token["id"]])
    backend = Tokenizer.from_str(json.dumps(parts))
    with quiet_transformers():
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=plain.bos_token, eos_token=plain.eos_token)


def with_rows_moved(network, order):
    """A network that reads and writes token order[n] where this one does n."""
    with torch.no_grad():
        for matrix in {id(m): m for m in (network.get_input_embeddings().weight, network.lm_head.weight)}.values():
            moved = matrix.clone()
            moved[torch.from_numpy(order)] = matrix
            matrix.copy_(moved)
    return network


def test_a_copy_under_another_numbering_is_matched_to_itself(tmp_path, text):
    order = np.random.default_rng(0).permutation(1024)
    copy = with_rows_moved(tiny_network("gpt2", 0), order)
    pair = [
        Model(tiny_network("gpt2", 0), "plain", tokenizer=small_tokenizer()),
        Model(copy, "copy", tokenizer=renumbered(order)),
    ]
    store = study(tmp_path, pair, text)
    best = store.matches.filter(pl.col("rank") == 1)
    assert (best["match_neuron"] == best["neuron"]).all()
    assert (best["match_layer"] == best["layer"]).all()
    np.testing.assert_allclose(best["corr"], 1, atol=1e-6)
    np.testing.assert_allclose(best["corr_heldout"], 1, atol=1e-6)
    assert (store.table("spans")["own_fraction"] > 0.9).all()
    assert store.manifest["tokens"]["tokenizer"] is None
    assert len(set(store.manifest["tokens"]["tokenizers"].values())) == 2


def test_the_estimate_knows_how_large_rows_of_spans_are(tmp_path, text):
    """On disk every tokenizer's ids and spans, and what the spans say and where."""
    readers = {"plain": small_tokenizer(), "moved": renumbered(np.roll(np.arange(1024), 7))}
    networks = [Model(tiny_network("gpt2", n), name, tokenizer=readers[name]) for n, name in enumerate(readers)]
    given = {"data": str(text), "context": 32, "max_tokens": 8_000, "draws": 2, "stages": ("labels", "universality")}
    plain = [networks[0], Model(tiny_network("gpt2", 1), "other")]
    tokens, spans = (estimate(resolve(decide(StudyConfig(**given)), m), m) for m in (plain, networks))
    passages = Passages.load(StudyConfig(**given), readers, context=32, folder=tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    more = spans.disk_peak - spans.disk_final - (tokens.disk_peak - tokens.disk_final)
    assert more == pytest.approx(size - 4 * len(passages) * 32, rel=0.25)


def test_as_many_labels_of_spans_are_planned_as_the_larger_vocabulary_has():
    readers = {"plain": small_tokenizer(), "moved": renumbered(np.roll(np.arange(1024), 7))}
    networks = [Model(tiny_network("gpt2", n), name, tokenizer=readers[name]) for n, name in enumerate(readers)]
    given = StudyConfig(data="bundled", draws=2, stages=("labels", "universality"))
    spans = resolve(decide(given), networks)
    tokens = spans.model_copy(update={"pooling": None})
    assert label_bytes(spans, networks) == label_bytes(tokens, networks)
    networks[1].vocab_size = 2048
    small, large = (label_bytes(settings, networks)[0] for settings in (tokens, spans))
    assert small == label_bytes(tokens, networks[:1] * 2)[0]
    assert large > 1.5 * small


def two_halves():
    """A tokenizer of words of two letters, and one of their letters; the second letter says which word it is."""
    words = [f"a{chr(0x4E00 + n)}" for n in range(WORDS)]
    whole = Tokenizer(models.WordLevel({"<s>": 0, "?": 1} | {w: n for n, w in enumerate(words, 2)}, unk_token="?"))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(".."), "isolated")
    halves = Tokenizer(
        models.WordLevel({"<s>": 0, "?": 1, "a": WORDS + 2} | {w[1]: n for n, w in enumerate(words, 2)}, unk_token="?")
    )
    halves.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made = []
    for tokenizer in (whole, halves):
        tokenizer.add_special_tokens(["<s>"])
        with quiet_transformers():
            made.append(
                PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="?")
            )
    return words, made


def token_wise(seed):
    """A network whose activations at a token depend on that token alone."""
    network = tiny_network("gpt2", seed)
    with torch.no_grad():
        network.transformer.wpe.weight.zero_()
        for block in network.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
    return network


def test_under_last_a_tokenizer_of_halves_says_what_that_of_wholes_says(tmp_path):
    words, (whole, halves) = two_halves()
    chooser = np.random.default_rng(0)
    data = tmp_path / "text.jsonl"
    data.write_text("\n".join(json.dumps({"text": "".join(chooser.choice(words, 90))}) for _ in range(40)))
    pair = [Model(token_wise(0), "wholes", tokenizer=whole), Model(token_wise(0), "halves", tokenizer=halves)]
    store = study(tmp_path, pair, data, pooling="last")
    require_described(store.table("spans"), "spans")
    spans = {row["model"]: row for row in store.table("spans").iter_rows(named=True)}
    assert spans["wholes"]["tokens_per_span"] == 1
    assert spans["halves"]["tokens_per_span"] == 2
    best = store.matches.filter(pl.col("rank") == 1)
    assert (best["match_neuron"] == best["neuron"]).all()
    np.testing.assert_allclose(best["corr"], 1, atol=1e-6)
    np.testing.assert_allclose(best["corr_within_tokens"].fill_nan(None).drop_nulls(), 1, atol=1e-3)
    means = [store.neurons.filter(pl.col("model") == name)["activation_mean"] for name in ("wholes", "halves")]
    np.testing.assert_allclose(*means, atol=1e-6)


def letters_of(text):
    """A tokenizer of single letters, spaces with what follows."""
    alphabet = sorted(set(text.read_text()))
    vocabulary = {"<s>": 0, "?": 1} | {letter: n for n, letter in enumerate(alphabet, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(["<s>"])
    with quiet_transformers():
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="?")


def pooled_by_numpy(network, passages, rows, kind):
    """float64 activations of the counted spans, from plain hooks and a loop."""
    layers, handles = [], []
    for block in network.blocks:
        handles.append(block.mlp.c_proj.register_forward_pre_hook(lambda _m, args: layers.append(args[0].double())))
    tokens = passages.tokens_of(network.name)
    with torch.inference_mode():
        network.hf(torch.from_numpy(tokens.ids(rows)))
    for handle in handles:
        handle.remove()
    values = torch.cat(layers, -1).numpy()
    numbers, mask, kept = passages.numbers(network.name, rows), tokens.mask(rows), passages.mask(rows)
    out = []
    for row in range(len(rows)):
        for span in np.flatnonzero(kept[row]):
            of_span = values[row][(numbers[row] == span) & mask[row]]
            out.append(of_span.mean(0) if kind == "mean" else of_span[-1])
    return np.array(out)


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_correlations_and_baselines_are_those_of_pooled_activations(tmp_path, text, kind):
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    store = study(tmp_path, pair, text, pooling=kind)
    passages = Passages.load(store.config, {m.name: m.tokenizer for m in pair}, context=32)
    chosen, stretches = passages.split()
    a, b = (pooled_by_numpy(network, passages, chosen, kind) for network in pair)
    assert store.manifest["counted_tokens"] == len(a)
    rho = np.corrcoef(a.T, b.T)[:48, 48:]
    best = store.matches.filter(pl.col("rank") == 1).sort("layer", "neuron")
    np.testing.assert_allclose(best["corr"], rho.max(1), atol=1e-6)
    np.testing.assert_array_equal(best["match_layer"] * 24 + best["match_neuron"], rho.argmax(1))
    maxima = []
    for draw in range(2):
        turn = rotation("rotation", 24, 0, draw).numpy()
        rotated = np.concatenate([layer @ turn.T for layer in np.split(b, 2, 1)], 1)
        maxima.append(np.corrcoef(a.T, rotated.T)[:48, 48:].max(1))
    neurons = store.neurons.filter(pl.col("model") == "words").sort("layer", "neuron")
    np.testing.assert_allclose(neurons["mean_baseline"], np.mean(maxima, 0), atol=1e-6)
    held_a, held_b = (pooled_by_numpy(network, passages, np.concatenate(stretches), kind) for network in pair)
    held = np.corrcoef(held_a.T, held_b.T)[:48, 48:][np.arange(48), rho.argmax(1)]
    np.testing.assert_allclose(best["corr_heldout"], held, atol=2e-6)


def test_all_stages_but_roles_of_spans(tmp_path, text, few_figures):
    """Labels, examples and positions are of spans; the page is written."""
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    store = study(tmp_path, pair, text, stages=())
    assert store.config.pooling == "mean"
    assert "roles" not in store.config.stages
    strings = store.table("vocabulary")["string"].to_list()
    assert any(len(string.strip()) > 2 for string in strings)
    assert store.has("examples")
    row = store.table("examples").row(0, named=True)
    assert all(0 <= token < len(strings) for token in row["tokens"])
    with pytest.raises(ConfigError, match="roles are of each model's own tokens"):
        study_roles(store.path, models=pair)
    assert store.neurons["family"].is_not_null().any()
    shown = plain_summary(store)
    page = write_report(store).read_text()
    for words in ("tokens a span", "spans of their own"):
        assert words in shown
        assert words in page


@pytest.mark.parametrize("search", ["screened", "sketch"])
def test_other_searches_subsets_panels_and_the_null(tmp_path, text, search):
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    store = study(tmp_path, pair, text, search=search, subset=("all",), panels=2, null="untrained", null_draws=1)
    assert store.neurons["p_untrained"].is_finite().any()
    assert set(store.subsets["subset"]) == {"a", "b"}


def test_what_cannot_be_asked_of_spans_is_refused(tmp_path, text):
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    with pytest.raises(ConfigError, match="max has no rotated baseline"):
        study(tmp_path, pair, text, pooling="max")
    with pytest.raises(ConfigError, match="roles are of each model's own tokens"):
        study(tmp_path, pair, text, stages=("weights", "statistics", "roles"))
    ready = TokenDataset.from_pieces([("", np.arange(1, 30))] * 40, context=32, bos=0, masked={0})
    with pytest.raises(TokenizerError, match="ready-made tokens"):
        run_study(StudyConfig(out=str(tmp_path / "x"), stages=UNIVERSALITY), models=pair, tokens=ready, progress=False)
    alike = [pair[0], Model(tiny_network("gpt2", 1), "alike", tokenizer=small_tokenizer())]
    with pytest.raises(ConfigError, match="for models of different tokenizers"):
        study(tmp_path, alike, text, pooling="last")
    assert not (tmp_path / "run").exists()


def test_the_largest_of_a_span_has_a_baseline_of_shuffled_spans(tmp_path, text):
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    store = study(tmp_path, pair, text, pooling="max", baseline="permutation")
    assert store.neurons.filter(pl.col("model") == "words")["excess_corr"].is_finite().all()


def test_one_tokenizer_takes_tokens_as_they_are():
    """No pooling, no table of spans: the positions are the tokens' own numbers."""
    tokens = TokenDataset.from_pieces([("", np.arange(1, 30))] * 4, context=32, bos=0, masked={0})
    rows = np.arange(4)
    one, other = inputs_of(tokens, ["anything", "else"], rows, counted_positions(tokens, rows)).values()
    assert one is other
    assert isinstance(one.places, torch.Tensor)


def test_a_study_of_spans_that_was_killed_goes_on_to_the_same_bytes(tmp_path, text, monkeypatch):
    pair = [
        Model(tiny_network("gpt2", 0), "words", tokenizer=small_tokenizer()),
        Model(tiny_network("gpt2", 1), "letters", tokenizer=letters_of(text)),
    ]
    whole = study(tmp_path / "whole", pair, text, max_tokens=60_000)
    settings = {"max_tokens": 60_000}
    with monkeypatch.context() as patched:
        patched.setattr("universal_neurons.study.stages.DetailPass", None)  # once the pass is done
        with pytest.raises(TypeError):
            study(tmp_path / "killed", pair, text, **settings)
    work = tmp_path / "killed" / "run" / "work"
    assert {"span-ids.i32", "ranges.i32", "text.utf8"} <= {path.name for path in work.iterdir()}
    again = study(tmp_path / "killed", pair, text, **settings)
    for name in ("matches", "neurons", "spans", "convergence"):
        assert again.table(name).equals(whole.table(name))
    assert not work.exists()


def saved(folder, network, tokenizer):
    with quiet_transformers():
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def test_sketches_of_spans_are_compared_like_their_models(tmp_path, text):
    """Each is made with the other's tokenizer; two made with other tokenizers are refused, and told apart."""
    a = saved(tmp_path / "words", tiny_network("gpt2", 0), small_tokenizer())
    b = saved(tmp_path / "letters", tiny_network("gpt2", 1), letters_of(text))
    given = {"data": str(text), "context": 32, "max_tokens": 30_000}
    files = []
    for model, other in ((a, b), (b, a)):
        out = f"{model}.safetensors"
        make_sketch(StudyConfig(models=(model,), out=out, **given), tokenizers=(other,))
        files.append(out)
    stores = {}
    for search in ("sketch", "screened"):
        settings = {"search": search, "draws": 2, "stages": UNIVERSALITY}
        config = StudyConfig(
            models=(a, b), out=str(tmp_path / f"m-{search}"), gemm_dtype="bfloat16", **settings, **given
        )
        of_files = StudyConfig(models=tuple(files), out=str(tmp_path / f"f-{search}"), search=search, draws=2)
        stores[search] = [run_study(one, progress=False) for one in (config, of_files)]
    for models_store, files_store in stores.values():
        best = [store.matches.filter(pl.col("rank") == 1) for store in (models_store, files_store)]
        np.testing.assert_allclose(best[0]["corr"], best[1]["corr"], atol=2e-3)
        assert (best[0]["match_neuron"] == best[1]["match_neuron"]).mean() > 0.95
    alone = f"{a}-alone.safetensors"
    make_sketch(StudyConfig(models=(a,), out=alone, **given))
    with pytest.raises(SketchError, match="other spans") as caught:
        run_study(StudyConfig(models=(alone, files[1]), out=str(tmp_path / "x")), progress=False)
    assert "spans of letters" in str(caught.value)
    with pytest.raises(ConfigError, match="all the model's own"):
        make_sketch(StudyConfig(models=(a,), out=f"{a}-own.safetensors", **given), tokenizers=(a,))
