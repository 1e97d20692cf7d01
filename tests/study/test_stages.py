"""Studies of every stage: one model, weights alone, labels of one's own, the same bytes after an interruption."""

import numpy as np
import polars as pl
import pytest
from conftest import FEW_ROLES, tiny_model
from test_correlation import captured, some_tokens
from test_study import contents, quiet

import universal_neurons.features.readers as readers
from universal_neurons import StudyConfig
from universal_neurons.errors import ConfigError, LabelError, MissingExtraError, MissingFileError, NothingToCompareError
from universal_neurons.report import study_figures, study_view, summary_html, write_joint_report, write_report
from universal_neurons.report.figures.families import Details
from universal_neurons.storage import Store, StoreWriter
from universal_neurons.study import ranking

FIRST = ("tokens", "unigrams", "subsets", "position", "topics")


def config_of(folder, **settings):
    labels = {} if "labels" not in settings.get("stages", ("labels",)) else {"labels": FIRST}
    return StudyConfig(out=str(folder), **{"draws": 2, "roles": FEW_ROLES} | labels | settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of two in-memory models with all stages, and what it was made of."""
    tokens = some_tokens(400)
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    config = config_of(tmp_path_factory.mktemp("whole") / "run")
    return quiet(config, models=models, tokens=tokens), models, tokens


def test_statistics_are_what_numpy_computes_from_the_rows_that_choose(whole):
    store, models, tokens = whole
    chosen, _ = tokens.split()
    part = type(tokens)(
        **{
            **vars(tokens),
            "rows": tokens.rows[chosen],
            "lengths": tokens.lengths[chosen],
            "subsets": tokens.subsets[chosen],
        }
    )
    for model in models:
        ids = np.arange(len(part))
        pre = model.activations(_torch(part.ids(ids)), pre_activations=True).double().numpy()
        counted = pre[part.mask(ids)]
        table = store.neurons.filter(pl.col("model") == model.name)
        np.testing.assert_allclose(table["mean"], counted.mean(0), atol=1e-6)
        np.testing.assert_allclose(table["var"], counted.var(0), rtol=1e-5)
        np.testing.assert_allclose(table["sparsity"], (counted > 0).mean(0), atol=1e-12)
        np.testing.assert_allclose(table["bos_mean"], pre[:, 0].mean(0), atol=1e-5)
        activation = captured(model, part)
        np.testing.assert_allclose(table["activation_mean"], activation.mean(0), atol=1e-6)
        np.testing.assert_allclose(table["activation_sd"], activation.std(0), rtol=1e-5)
        rho = np.corrcoef(captured(model, part).T)
        for layer in range(2):
            block = rho[24 * layer : 24 * layer + 24, 24 * layer : 24 * layer + 24] - 2 * np.eye(24)
            rows = table.filter(pl.col("layer") == layer)
            np.testing.assert_allclose(rows["layer_corr_max"], block.max(1), atol=1e-6)
            np.testing.assert_array_equal(rows["layer_corr_neuron"], block.argmax(1))


def test_examples_are_the_highest_activations(whole):
    store, models, tokens = whole
    chosen, _ = tokens.split()
    activations = models[1].activations(_torch(tokens.ids(chosen))).numpy()
    activations = np.where(tokens.mask(chosen)[..., None], activations, -np.inf)
    best_per_row = activations.max(1)
    for neuron in (0, 30, 47):
        rows = store.examples.filter(
            (pl.col("model") == "gpt2-1") & (pl.col("layer") == neuron // 24) & (pl.col("neuron") == neuron % 24)
        )
        top = rows.filter(pl.col("band") == "top")
        expected = np.sort(best_per_row[:, neuron])[::-1][:5]
        np.testing.assert_allclose(top["activation"], expected, atol=1e-6)
        for row in top.iter_rows(named=True):
            span = tokens.ids(np.array([row["row"]]))[0, row["start"] : row["start"] + len(row["tokens"])]
            assert row["tokens"] == span.tolist()
            assert row["activations"][row["position"] - row["start"]] == pytest.approx(row["activation"], rel=2e-3)
        assert rows.group_by("band").agg(pl.col("row").n_unique() == pl.len())["row"].all()


def test_all_tables_speak_of_the_same_neurons(whole):
    store, _, _ = whole
    labels = store.labels.filter(pl.col("rank") == 1)
    both = store.neurons.join(labels, on=("model", "layer", "neuron"))
    assert len(both) == 96
    previous = both["previous"]
    names = pl.select(
        pl.when(previous).then(pl.lit("previous token: ") + both["label_right"]).otherwise(both["label_right"])
    )
    assert (names.to_series() == both["label"]).all()
    assert (both["variance_reduction"] == both["variance_reduction_right"]).all()
    assert (both["label_sign"] == both["sign"]).all()
    assert store.table("vocabulary")["count"].sum() == sum(
        int(tokens_mask.sum()) for tokens_mask in [whole[2].mask(np.arange(len(whole[2])))]
    )
    low, high, counts = store.histogram("gpt2-1", 30)
    assert counts.sum() == store.manifest["counted_tokens"]
    assert (low < high).all()


def test_an_interrupted_study_with_all_stages_resumes_to_the_same_bytes(whole, tmp_path, monkeypatch):
    _, models, _ = whole
    config = config_of(tmp_path / "again")
    calls = 0
    save = StoreWriter.save_snapshot

    def stop_after_two(self, tensors, shard):
        nonlocal calls
        save(self, tensors, shard)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    small = some_tokens(400)
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 4096)
    whole_again = quiet(config_of(tmp_path / "uninterrupted"), models=models, tokens=small)
    monkeypatch.setattr(StoreWriter, "save_snapshot", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        quiet(config, models=models, tokens=small, checkpoint_seconds=0.0)
    monkeypatch.setattr(StoreWriter, "save_snapshot", save)
    assert contents(quiet(config, models=models, tokens=small)) == contents(whole_again)


def test_one_model_alone_is_a_study(tmp_path, svg_only):
    store = quiet(config_of(tmp_path / "one"), models=[tiny_model("gpt2", 0, "alone")], tokens=some_tokens(200))
    assert store.config.stages == ("weights", "statistics", "labels", "roles")
    assert store.askers == []
    assert not store.has("matches")
    assert store.neurons["excess_corr"].is_null().all()
    assert store.neurons["family"].is_not_null().all()
    assert store.neurons["skew_percentile"].is_not_null().all()
    page = write_report(store).read_text()
    assert "What the neurons fire on" in page
    assert "Which neurons does every model find again" not in page
    drawn = {path.stem for path in (store.path / "figures").iterdir()}
    assert {"sparsity-alone", "nearest-alone", "layers-alone", "teaser"} <= drawn
    assert "alone" in summary_html(store)
    assert study_view(store)


def test_universality_of_one_model_is_refused(tmp_path):
    with pytest.raises(NothingToCompareError, match="repeat --models"):
        quiet(
            config_of(tmp_path / "one", stages=("universality",)), models=[tiny_model("gpt2")], tokens=some_tokens(50)
        )


def test_weights_alone_need_no_text(tmp_path, whole, request):
    models = [tiny_model("gpt2", 0, "plain"), tiny_model("llama", 0, "gated")]
    store = quiet(StudyConfig(out=str(tmp_path / "w"), stages=("weights",)), models=models)
    assert store.manifest["tokens"] is None
    assert [path.name for path in store.path.glob("*.parquet")] == ["neurons.parquet"]
    table = store.neurons
    assert table["in_cos_max"].is_not_null().all()
    assert (table["w_up_norm"].is_not_null() == (table["model"] == "gated")).all()
    assert table["mean"].is_null().all()
    assert table["dead"].is_null().all()
    write_report(store)
    request.getfixturevalue("few_figures")
    assert write_joint_report([store, whole[0]], tmp_path / "page.html").exists()
    assert quiet(StudyConfig(out=str(tmp_path / "w"), stages=("weights",)), models=models).path == store.path


def test_stages_can_be_asked_for_one_by_one(tmp_path, svg_only):
    model, tokens = tiny_model("gpt2"), some_tokens(200)
    only = quiet(config_of(tmp_path / "s", stages=("statistics",)), models=[model], tokens=tokens)
    assert only.neurons["kurt"].is_not_null().all()
    assert only.neurons["family"].is_null().all()
    assert only.has("examples")
    assert not only.has("labels")
    other = quiet(config_of(tmp_path / "l", stages=("labels",)), models=[model], tokens=tokens)
    assert other.has("labels")
    assert not other.has("examples")
    write_report(only), write_report(other)


def test_without_spacy_all_else_works_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("universal_neurons.labels.syntax.find_spec", lambda name: None)
    config = StudyConfig(out=str(tmp_path / "run"), draws=2, stages=("labels",))
    store = quiet(config, models=[tiny_model("gpt2")], tokens=some_tokens(100))
    assert store.config.nlp is None
    assert "syntax" not in store.labels["group"].unique()
    with pytest.raises(MissingExtraError, match=r"universal-neurons\[nlp\]"):
        quiet(config.model_copy(update={"labels": ("syntax",)}), models=[tiny_model("gpt2")], tokens=some_tokens(100))
    with pytest.raises(MissingExtraError, match="pip install"):
        quiet(
            config.model_copy(update={"nlp": "de_core_news_sm"}), models=[tiny_model("gpt2")], tokens=some_tokens(100)
        )


def test_labels_of_ones_own_are_part_of_the_study(tmp_path):
    model, tokens = tiny_model("gpt2"), some_tokens(200)
    sets = tmp_path / "sets.yaml"
    sets.write_text("articles: [the, a]\n")
    config = config_of(tmp_path / "run", stages=("labels",), labels=(str(sets),))
    store = quiet(config, models=[model], tokens=tokens, labels={"short": lambda token: len(token) < 3})
    assert store.manifest["labels"]["own"] == ["short", "articles"]
    assert set(store.labels["label"].unique()) == {"short", "articles"}
    with pytest.raises(Exception, match="holds another study"):
        quiet(config, models=[model], tokens=tokens, labels={"short": lambda token: len(token) < 2})
    with pytest.raises(LabelError, match="function failed"):
        quiet(config_of(tmp_path / "x"), models=[model], tokens=tokens, labels={"bad": lambda token: token[99]})
    assert not (tmp_path / "x").exists()
    with pytest.raises(MissingFileError):
        quiet(config_of(tmp_path / "y", labels=("none.yaml",)), models=[model], tokens=tokens)
    with pytest.raises(ConfigError, match="labels"):
        quiet(
            config_of(tmp_path / "z", stages=("statistics",)), models=[model], tokens=tokens, labels={"a": str.isalpha}
        )


def test_a_text_without_labels_is_refused_and_leaves_nothing(tmp_path):
    config = config_of(tmp_path / "run", labels=("subsets",), stages=("labels",))
    with pytest.raises(LabelError, match="no label of these groups"):
        quiet(config, models=[tiny_model("gpt2")], tokens=some_tokens(100))
    assert not (tmp_path / "run").exists()


def test_subsets_without_universality_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--subset"):
        quiet(config_of(tmp_path / "r", subset=("all",)), models=[tiny_model("gpt2")], tokens=some_tokens(100))


def test_a_model_may_be_called_labels_or_word(tmp_path):
    models = [tiny_model("gpt2", 0, "labels"), tiny_model("gpt2", 1, "word")]
    store = quiet(config_of(tmp_path / "r", stages=("labels",)), models=models, tokens=some_tokens(100))
    assert store.neurons["family"].is_not_null().all()


def test_the_figures_show_the_neurons_that_rank_first(whole):
    store, _, _ = whole
    reference = store.neurons.filter(pl.col("model") == "gpt2-0")
    kept = Details(store.table("details"), reference, store.strings)
    for family in reference["family"].unique().drop_nulls():
        ranked, _ = ranking(reference.filter(pl.col("family") == family))
        shown, _ = kept.of_family(family)
        if family not in ("unexplained", "position", "bos"):
            assert shown.row(0)[:3] == ranked.row(0)[:3]


def test_settings_that_contradict_each_other_are_refused():
    from universal_neurons.config_reading import make_config

    for wrong in ({"labels": ("nonsense",)}, {"stages": ("weights",), "labels": ("tokens",)}, {"stages": ("sleep",)}, {"nlp": "x", "labels": ("tokens",)},
                  {"examples": 0}, {"unexplained": 1.5}):  # fmt: skip
        with pytest.raises(ConfigError):
            make_config(wrong)


@pytest.mark.parametrize("setting", [{"search": "screened"}, {"panels": 2}, {"sums": "compensated"}])
def test_settings_of_universality_are_refused_without_it(tmp_path, setting):
    config = StudyConfig(stages=("statistics",), out=str(tmp_path / "run"), **setting)
    with pytest.raises(ConfigError, match="universality"):
        quiet(config, models=[tiny_model("gpt2", 0)], tokens=some_tokens())
    assert not (tmp_path / "run").exists()


def test_figures_are_redrawn_without_a_model(whole, monkeypatch):
    store, _, _ = whole
    before = study_figures(store)
    monkeypatch.setattr(readers, "NeuronSource", None)
    again = study_figures(Store(store.path))
    assert again.keys() == before.keys()
    assert {"teaser", "more-families", "percentiles"} <= again.keys()


def _torch(ids):
    import torch

    return torch.from_numpy(ids)
