"""A study at another threshold is the study that would have been made at it."""

import hashlib

import polars as pl
import pytest
from conftest import alike_models, exit_code
from polars.testing import assert_frame_equal
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.report import at_threshold, study_view
from universal_neurons.report.facts import asker_lines
from universal_neurons.report.figures import study_figures
from universal_neurons.terminal import plain

THRESHOLD = 0.33  # off the grid


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The same study at the default threshold and at another."""
    folder = tmp_path_factory.mktemp("thresholds")
    made = []
    for name, settings in (("own", {}), ("other", {"threshold": THRESHOLD})):
        config = StudyConfig(
            out=str(folder / name), draws=2, stages=("universality",), pairs="all", subset=("all",), null="untrained",
            null_draws=1, **settings,
        )  # fmt: skip
        made.append(run_study(config, models=alike_models("abc"), tokens=some_tokens(200), progress=False))
    return made


def files(store):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in store.path.rglob("*") if path.is_file()}


def test_every_table_is_that_of_the_study_made_at_it(studies):
    own, other = studies
    before = files(own)
    seen = at_threshold(own, THRESHOLD)
    assert (own.neurons["is_universal"] != other.neurons["is_universal"]).any()
    for name in ("neurons", "subsets", "anchors", "cliques", "clique_levels", "matches"):
        assert_frame_equal(seen.table(name), pl.read_parquet(other.path / f"{name}.parquet"))
    counted = [n for n in own.table("thresholds").columns if not n.startswith("rotated")]
    wanted = pl.read_parquet(other.path / "thresholds.parquet")
    shown = seen.table("thresholds").filter(pl.col("threshold").is_in(wanted["threshold"].to_list()))
    assert_frame_equal(shown.select(counted), wanted.select(counted))
    for asker in own.askers:
        assert asker_lines(seen, asker)[:3] == asker_lines(other, asker)[:3]
    assert (
        plain(study_view(seen), 110).split("at thresholds")[0]
        == plain(study_view(other), 110).split("at thresholds")[0]
    )
    assert files(own) == before


def test_its_own_threshold_is_no_other(studies):
    own, _ = studies
    assert at_threshold(own, None) is own
    assert at_threshold(own, 0.5) is own


def test_the_commands_say_so_and_leave_the_study_alone(studies, tmp_path, few_figures, capsys):
    own, other = studies
    before = files(own)
    assert exit_code("show", own.path, "--threshold", THRESHOLD) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "excess > 0.33, as asked for now; the study's own threshold is 0.5" in printed
    count = other.neurons.filter(pl.col("model") == "a")["is_universal"].sum()
    assert f"as the paper counts (excess > 0.33) │ {count} =" in printed
    assert exit_code("show", own.path, "L0.3", "--threshold", THRESHOLD) == 0
    assert exit_code("report", own.path, "--threshold", THRESHOLD, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "own threshold is 0.5" in page
    assert exit_code("report", own.path, other.path, "--threshold", THRESHOLD, "--out", tmp_path / "two.html") == 0
    capsys.readouterr()
    for wrong, told in (("nan", "no number"), (THRESHOLD, "leaves the study as it is")):
        assert exit_code("report", own.path, "--threshold", wrong, "--out", own.path / "report.html") == 2
        assert told in capsys.readouterr().err
    assert files(own) == before


def test_figures_are_drawn_at_it(studies):
    own, _ = studies
    assert study_figures(at_threshold(own, THRESHOLD)).keys() == study_figures(own).keys()
