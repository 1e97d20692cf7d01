"""A study's passes: stopped after any checkpoint they go on to the same bytes; what was found survives a checkpoint."""

from dataclasses import fields, is_dataclass

import pytest
import torch
from conftest import settled, tiny_model
from test_panels import texts
from test_study import contents

from universal_neurons import StudyConfig, run_study
from universal_neurons.matching import WHOLE, Finding, Findings, Piece, Scope
from universal_neurons.matching.baselines import Maxima
from universal_neurons.matching.candidates import Proposal
from universal_neurons.matching.correlation import Matches
from universal_neurons.matching.rotated_pairs import RotatedPairs
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Certainty
from universal_neurons.storage import StoreWriter

STUDIES = {
    "lanes": {
        "panels": 3, "search": "screened", "pairs": "all", "subset": ("prose",), "stages": ("universality",), "group_size": 8,
        "lanes": 3,
    },
    "all stages": {
        "panels": 2, "labels": ("tokens", "unigrams", "subsets", "position", "topics"),
        "stages": ("weights", "statistics", "labels", "universality"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs():
    return [tiny_model("gpt2", seed, f"m{seed}", n_inner=12) for seed in range(3)], texts(80)


@pytest.fixture
def study(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 800)
    models, tokens = inputs

    def run(name, settings, reporter=None):
        few = models[: 2 if "labels" in settings else 3]
        config = StudyConfig(out=str(tmp_path / name), draws=2, **settings)
        return run_study(config, models=few, tokens=tokens, checkpoint_seconds=0.0, progress=False, reporter=reporter)

    return run


def stopping(monkeypatch, at=None):
    """The steps that were saved; after save number `at` the study is interrupted."""
    save, saved = StoreWriter.save_snapshot, []

    def interrupted(self, tensors, shard):
        save(self, tensors, shard)
        saved.append(shard)
        if len(saved) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "save_snapshot", interrupted)
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lanes"])
def test_stopped_after_one_checkpoint_a_study_resumes_to_the_same_bytes(study, monkeypatch, name):
    settings = STUDIES[name]
    with monkeypatch.context() as patched:
        steps = stopping(patched)
        whole = contents(study("whole", settings))
    passes = settings["panels"] + (settings.get("search") == "screened")
    shards = steps[-1] // passes
    assert steps == list(range(1, passes * shards + 1))
    assert shards >= 3
    for at in (1, shards, len(steps) - 1):
        with monkeypatch.context() as patched:
            saved = stopping(patched, at)
            with pytest.raises(KeyboardInterrupt):
                study(f"stopped-{at}", settings)
            again = study(f"stopped-{at}", settings)
        assert contents(again) == whole, f"stopped after checkpoint {at}"
        assert saved == steps  # no shard was read twice, none left out


@pytest.mark.parametrize("name", STUDIES)
def test_stopped_after_every_checkpoint_a_study_still_ends_with_the_same_bytes(study, monkeypatch, name):
    whole = contents(study("whole", STUDIES[name]))
    for _ in range(100):
        with monkeypatch.context() as patched:
            stopping(patched, 1)
            try:
                found = study("stopped", STUDIES[name])
            except KeyboardInterrupt:
                continue
        assert contents(found) == whole
        return
    raise AssertionError("it does not end")


def test_a_checkpoint_at_the_end_of_a_pass_is_not_read_by_the_next_one(study, monkeypatch):
    """The last checkpoint of a pass holds its state; the next pass begins anew, of no tokens."""
    settings = {name: value for name, value in STUDIES["lanes"].items() if name != "lanes"}
    with monkeypatch.context() as patched:
        steps = stopping(patched)
        whole = study("whole", settings)
    shards = steps[-1] // 4
    with monkeypatch.context() as patched:
        stopping(patched, shards)
        with pytest.raises(KeyboardInterrupt):
            study("stopped", settings)
    again = study("stopped", settings)
    assert again.manifest["counted_tokens"] == whole.manifest["counted_tokens"]
    assert contents(again) == contents(whole)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_damaged_checkpoint_means_the_one_before_or_to_start_anew(study, tmp_path, monkeypatch, lost):
    settings = {"panels": 2, "stages": ("universality",)}
    whole = contents(study("whole", settings))
    with monkeypatch.context() as patched:
        stopping(patched, 6)
        with pytest.raises(KeyboardInterrupt):
            study("stopped", settings)
    for folder in sorted((tmp_path / "stopped" / "work").glob("checkpoint-*"), reverse=True)[:lost]:
        state = folder / "0000.safetensors"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 64
        state.write_bytes(content)
    notes = []
    reporter = Reporter(quiet=True)
    reporter.note = notes.append
    with monkeypatch.context() as patched:
        steps = stopping(patched)
        assert contents(study("stopped", settings, reporter)) == whole
    assert steps[0] == (6 if lost == 1 else 1)
    assert [note for note in notes if "is not used: 0000.safetensors is damaged" in note][lost - 1 :]


def some(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def places(*shape):
    return torch.randint(0, 9, shape)


def a_piece(rows, columns, screened, certified=False):
    n, others = rows[1] - rows[0], columns[1] - columns[0]
    beyond = some(n, 5), places(n, 4), some(n, 4)
    back = places(others, 4), some(others, 4)
    proposal = Proposal(some(n, 5), places(n, 5), *beyond, places(n, 2), some(n, 2), *back)
    sure = torch.rand(n) > 0.5 if certified else None
    matches = Matches(some(n, 3), places(n, 3), some(n), places(n), places(others), some(others), sure)
    maxima = [Maxima(some(2, n), places(2, n)) for _ in range(2)]
    further = (
        (
            maxima[1],
            RotatedPairs(*(some(n), some(n), places(n), some(others), places(others), some(n, 2), places(n, 2))),
        )
        if certified
        else (None, None)
    )
    return Piece(rows, columns, matches, maxima[0], further[0], proposal if screened else None, further[1])


def findings_of(config):
    found = Findings(config)
    sure = [Certainty(some(6), some(8), some(1)[0], some(4, 6), some(4, 8)) for _ in range(2)]
    found.of[WHOLE, "a", "b"] = Finding([a_piece((0, 4), (0, 8), True), a_piece((4, 6), (0, 8), True)], sure[0])
    found.of[WHOLE, "b", "a"] = Finding([a_piece((0, 8), (0, 6), False, certified=True)])
    found.of[Scope(subset="of/any.name"), "a", "b"] = Finding([a_piece((0, 6), (0, 3), False)], sure[1])
    found.of[Scope(tokens=120), "a", "org/b"] = Finding([a_piece((0, 6), (3, 8), False)])
    return found


def require_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
        assert one.dtype == two.dtype
    elif is_dataclass(one):
        for field in fields(one):
            require_equal(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, list):
        assert len(one) == len(two)
        for mine, theirs in zip(one, two):
            require_equal(mine, theirs)
    else:
        assert one == two


def test_findings_survive_a_checkpoint(tmp_path):
    """Through the store's files: pieces, proposals, certainty, subsets and points on the way."""
    torch.manual_seed(0)
    found, again = findings_of(settled()), Findings(settled())
    again.of[Scope(subset="left over"), "a", "b"] = Finding()
    with StoreWriter(tmp_path / "store") as writer:
        writer.save_snapshot(found.state(), 3)
        state, shard = writer.load_snapshot()
    assert shard == 3
    again.restore(state)
    assert list(again.of) == list(found.of)
    for key in found.of:
        require_equal(found.of[key], again.of[key])
    again.restore({})
    assert again.of == {}


def test_nothing_found_yet_is_nothing_to_keep():
    assert Findings(settled()).state() == {}
