"""Whole studies on a GPU: the tables of the same studies on a CPU, the same bits twice, resumed, and how exact."""

import numpy as np
import polars as pl
import pytest
import torch
from conftest import FEW_ROLES, model_on
from hand_written import run as run_by_hand
from test_correlation import captured, run_pass, some_tokens
from test_panels import texts
from test_passes import stopping
from test_sketched import sketch_of, study_of
from test_study import contents

from universal_neurons import StudyConfig, run_study
from universal_neurons.interventions import Edit, intervene
from universal_neurons.matching.correlation import correlation_panels
from universal_neurons.models import Model
from universal_neurons.passes import Layout
from universal_neurons.storage import SketchFile
from universal_neurons.study import estimate_study
from universal_neurons.study.memory import memory_plan

pytestmark = pytest.mark.cuda

ALL_STAGES = {"labels": ("tokens", "unigrams", "subsets", "position", "topics"), "roles": FEW_ROLES}
STAGES = ("weights", "statistics", "labels", "universality", "roles")
ALONE = {"stages": ("universality",)}
STUDIES = {
    "all stages": ("gpt2", ALL_STAGES | {"panels": 2, "subset": ("prose",)}),
    "screened": ("gpt2", ALONE | {"search": "screened", "group_size": 2, "pairs": "all", "panels": 3, "lanes": 3}),
    "sketch": ("gpt2", ALONE | {"search": "sketch", "group_size": 4, "pairs": "all"}),
    "permutation": ("gpt2", ALONE | {"baseline": "permutation", "sums": "compensated", "lanes": 2}),
    "dense labels": ("gpt2", ALL_STAGES | {"gemm_dtype": "bfloat16", "stages": STAGES[:4]}),
    "rotary": ("llama", {"stages": ("weights", "statistics", "universality", "roles"), "roles": FEW_ROLES}),
    "encoder": ("bert", {"stages": ("weights", "statistics", "universality"), "pairs": "all"}),
}
TIGHT, WIDE = (1e-4, 1e-3), (2e-3, 1e-2)  # absolute and relative, of a number in a table
PLACES = {"examples": ["model", "layer", "neuron", "band", "rank"]}  # of a table's rows, where their number differs
COUNTS = ("anchors", "consistency", "consistency_levels")
CLASSES = {"corr_ranks": 2e-3}  # columns of ranks by classes: a value at an edge may fall on either side of it
DIFFERING = 0.03  # of a column, or one entry: near ties are decided by rounding
RHO = {"float32": (2e-6, 2e-7), "tf32": (2e-4, 3e-5), "bfloat16": (1e-3, 2e-4), "a bfloat16 model": (2e-2, 4e-3)}


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 800)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a study of tiny models on a device; a study that ran before is not run again."""
    root, done, loaded, tokens = tmp_path_factory.mktemp("studies"), {}, {}, texts(80)

    def study(name, device, out=""):
        family, settings = STUDIES[name]
        if (name, device, out) not in done:
            for seed in range(2):
                loaded.setdefault((family, device, seed), model_on(device, family, seed))
            models = [loaded[family, device, seed] for seed in range(2)]
            place = root / f"{name} {device} {out}"
            common = {"out": str(place), "draws": 2, "gemm_dtype": "float32", "batch_tokens": 400}
            config = StudyConfig(**common | settings)
            with pytest.MonkeyPatch.context() as patched:  # a CPU's own bfloat16 rounds products too, a GPU's does not
                patched.setattr("universal_neurons.statistics.products.processor_flags", frozenset)
                if name == "dense labels":
                    patched.setattr("universal_neurons.labels.study_labels.SUMS_BYTES", 0)
                done[name, device, out] = run_study(
                    config, models=models, tokens=tokens, checkpoint_seconds=0.0, progress=False
                )
        return done[name, device, out]

    return study


def differing(one, two, absolute, relative):
    """Which entries of two columns differ, and the largest difference of numbers."""
    if isinstance(one.dtype, pl.List) and (one.dtype.inner.is_float() or isinstance(one.dtype.inner, pl.List)):
        other_length = one.list.len().ne_missing(two.list.len()).to_numpy()
        differ, apart = differing(
            *(column.filter(~other_length).explode() for column in (one, two)), absolute, relative
        )
        return np.concatenate([differ, np.ones(other_length.sum(), dtype=bool)]), apart
    if not one.dtype.is_float():
        return one.ne_missing(two).to_numpy(), 0.0
    one, two = (column.fill_null(-777.0).to_numpy() for column in (one, two))
    same = np.isclose(one, two, rtol=relative, atol=absolute, equal_nan=True)
    return ~same, float(np.nanmax(np.abs(one - two), initial=0.0))


def compare(found, expected, name, tolerance):
    """What of a table disagrees, in words."""
    if found.columns != expected.columns or abs(len(found) - len(expected)) > DIFFERING * len(expected):
        return [f"{name}: {found.shape} in place of {expected.shape}"]
    assert found.schema == expected.schema
    if name in COUNTS:  # a near tie that rounding decides moves the counts of all levels
        found, expected = (table.with_columns(pl.col(pl.Int64).cast(pl.Float64)) for table in (found, expected))
        tolerance = (DIFFERING * 96, 0.0)
    if name in PLACES:  # one example more or less in one band moves all that follow
        both = found.select(PLACES[name]).join(expected.select(PLACES[name]), PLACES[name], how="inner")
        assert len(both) >= (1 - DIFFERING) * len(expected)
        found, expected = (both.join(table, PLACES[name], maintain_order="left") for table in (found, expected))
    rows, wrong = min(len(found), len(expected)), []
    for column in found.columns:
        absolute, relative = max(tolerance[0], CLASSES.get(column, 0.0)), tolerance[1]
        differ, apart = differing(found[column].head(rows), expected[column].head(rows), absolute, relative)
        if differ.sum() > max(1, DIFFERING * len(differ)):
            wrong.append(f"{name}.{column}: {differ.sum()} of {len(differ)} differ, at most {apart:.2g} apart")
    return wrong


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_finds_what_it_finds_on_a_cpu(run, device, name):
    found, expected = run(name, device), run(name, "cpu")
    tables = sorted(path.stem for path in expected.path.glob("*.parquet"))
    assert tables == sorted(path.stem for path in found.path.glob("*.parquet"))
    tolerance = WIDE if STUDIES[name][1].get("gemm_dtype") == "bfloat16" else TIGHT
    wrong = []
    for table in tables:
        wrong += compare(found.table(table), expected.table(table), table, tolerance)
    assert not wrong, "\n".join(wrong)
    assert found.manifest["counted_tokens"] == expected.manifest["counted_tokens"]
    if name == "all stages":
        assert {"details", "examples", "labels", "interventions", "ablations", "attention", "functional"} <= {*tables}
        assert (found.path / "histograms.safetensors").stat().st_size > 1000


def test_the_same_study_twice_gives_the_same_bytes(run, device):
    for name in ("all stages", "screened"):
        one, two = contents(run(name, device)), contents(run(name, device, "again"))
        assert {key for key in one | two if one.get(key) != two.get(key)} == set(), name


@pytest.mark.parametrize(("name", "at"), [("screened", 4), ("all stages", 3)])
def test_a_study_that_was_stopped_goes_on_to_the_same_bytes(run, device, monkeypatch, name, at):
    """Its state was brought to the CPU and back."""
    whole = contents(run(name, device))
    with monkeypatch.context() as patched:
        saved = stopping(patched, at)
        with pytest.raises(KeyboardInterrupt):
            run(name, device, "stopped")
        again = contents(run(name, device, "stopped"))
    assert len(saved) == len(set(saved)) > at
    assert {key for key in whole | again if whole.get(key) != again.get(key)} == set()


@pytest.fixture(scope="module")
def exact():
    """ρ of two models by NumPy, from activations that a CPU computed in float32."""
    tokens = some_tokens(150)
    left, right = (captured(model_on("cpu", seed=seed), tokens) for seed in (0, 1))
    return tokens, np.corrcoef(left.T, right.T)[:48, 48:]


@pytest.mark.parametrize("precision", RHO)
def test_how_far_rho_moves_with_the_precision(device, exact, precision, record_property):
    tokens, expected = exact
    models = [model_on(device, seed=seed) for seed in (0, 1)]
    if precision == "a bfloat16 model":
        models = [Model(model.hf.bfloat16(), model.name) for model in models]
    evidence = run_pass(models, tokens, dtype=precision.split()[-2] if " " in precision else precision)
    names = [model.name for model in models]
    panels = correlation_panels(evidence.cross(*names), *(evidence.norms(name) for name in names))
    moved = np.abs(torch.cat([panel.cpu() for _, panel in panels]).numpy() - expected)
    largest, rms = float(moved.max()), float(np.sqrt(np.mean(moved**2)))
    print(f"\nρ in {precision} on {device}: at most {largest:.2e} off, rms {rms:.2e}")
    record_property("largest", largest)
    record_property("rms", rms)
    assert largest <= RHO[precision][0]
    assert rms <= RHO[precision][1]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_interventions_are_what_was_written_by_hand(device, family):
    model, ids = model_on(device, family), torch.arange(1, 61).view(3, 20) * 13 % 1024
    numbers, edit = [3, 29, 40], Edit("fix", torch.tensor([2.0, -1.0, 0.5]))

    def change(layer, activation):
        changed = activation.clone()
        for number, value in zip(numbers, edit.value.tolist()):
            if number // 24 == layer:
                changed[..., number % 24] = value
        return changed

    expected = run_by_hand(model_on("cpu", family).hf, ids, change).logits
    with intervene(model, numbers, edit):
        logits = model.logits(ids).double().cpu()
    assert float((logits - expected).abs().max() / expected.abs().max()) < 2e-6
    plain = run_by_hand(model_on("cpu", family).hf, ids).logits
    assert float((logits - plain).abs().max() / expected.abs().max()) > 1e-3


@pytest.fixture(scope="module")
def sketches(folders, text_file, device, tmp_path_factory):
    """Sketches of two models, made on the device and on a CPU in the same precision."""
    made, settings = tmp_path_factory.mktemp("sketches"), {"dtype": "float32", "gemm_dtype": "bfloat16"}
    return [
        [
            sketch_of(folder, text_file, made / f"{kind}-{folder.name}.safetensors", device=place, **settings)
            for folder in folders[:2]
        ]
        for kind, place in (("there", device), ("here", "cpu"))
    ]


def test_a_sketch_holds_the_same_sums(sketches):
    for found, expected in zip(*(map(SketchFile, made) for made in sketches)):
        assert set(found.tensors.keys()) == set(expected.tensors.keys())
        for name in found.tensors.keys():  # noqa: SIM118
            one, two = (file.get(name).double().numpy() for file in (found, expected))
            scale = np.abs(two).max(initial=1e-30)
            np.testing.assert_allclose(one, two, rtol=2.0**-7, atol=3e-3 * scale, err_msg=name)
            assert np.sqrt(np.mean((one - two) ** 2)) <= 2e-4 * scale, name
        for name in ("n", "heldout_n", "lengths", "subsets"):
            assert torch.equal(found.get(name), expected.get(name))


@pytest.mark.parametrize("search", ["sketch", "screened"])
def test_studies_of_sketches(sketches, device, tmp_path, search):
    there, here = sketches
    found = study_of(there, tmp_path / "there", device=device, search=search)
    crossed = study_of(there, tmp_path / "crossed", device="cpu", search=search)
    expected = study_of(here, tmp_path / "here", device="cpu", search=search)
    for other in (crossed, expected):
        for column in ("mean_corr", "mean_baseline", "excess_corr"):
            one, two = (store.neurons[column].drop_nulls() for store in (found, other))
            np.testing.assert_allclose(one, two, atol=5e-3, err_msg=column)
        first = [store.matches.filter(pl.col("rank") == 1) for store in (found, other)]
        assert (first[0]["match_neuron"] == first[1]["match_neuron"]).mean() > 0.9


def test_memory_is_as_planned(device, tmp_path, record_property):
    native = device.startswith("cuda")
    width, place = (2048 if native else 128), torch.device(device)
    models = [model_on(device, seed=seed, n_inner=width) for seed in (0, 1)]
    config = StudyConfig(out=str(tmp_path / "run"), draws=2, batch_tokens=2048, gemm_dtype="bfloat16", **ALONE)
    if native:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
    store = run_study(config, models=models, tokens=some_tokens(200), progress=False)
    plan = memory_plan(store.settings, models, Layout(**store.manifest["layout"])).total
    if native:
        peak = torch.cuda.max_memory_allocated(place) - before
        print(f"\nmemory: {peak / 2**20:.0f} MiB at the peak, {plan / 2**20:.0f} MiB planned")
        record_property("peak", peak)
        record_property("planned", plan)
        assert plan / 5 <= peak <= 1.25 * plan


def test_the_estimate_runs(device, folders, text_file, tmp_path):
    config = StudyConfig(
        models=tuple(map(str, folders[:2])), data=str(text_file), device=device, search="screened", group_size=8,
        max_tokens=4000, out=str(tmp_path / "run"),
    )  # fmt: skip
    found = estimate_study(config)
    assert 0 < found.seconds < 600
    assert 0 < found.memory_peak < found.memory_available
