"""Documentation cannot drift: every command, setting, public name and table column has its place."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import FEW_ROLES
from described import WORDS, require_described
from reference import all_pages, columns
from sentences import bare_numbers, long_sentences
from store_page import LIST, filled

import universal_neurons as un
from universal_neurons.cli import app
from universal_neurons.config import DynamicsConfig, Published, StudyConfig
from universal_neurons.config_reading import make_config

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_has_help_and_a_section():
    names = [name for name in app if not name.startswith("-")]
    assert set(names) == {
        "run",
        "dynamics",
        "diff",
        "sketch",
        "show",
        "labels",
        "roles",
        "explain",
        "report",
        "export",
        "serve",
        "check",
        "estimate",
        "convert",
    }
    for name in names:
        assert app[name].help or app[name].default_command.__doc__
        assert f"## `uneurons {name}`" in DOCS["commands.md"]


def test_every_setting_is_described():
    for name, field in (StudyConfig.model_fields | DynamicsConfig.model_fields | un.DiffConfig.model_fields).items():
        assert f"`{name}`" in DOCS["commands.md"], name
        assert field.description, name


def test_every_public_name_has_a_page_and_a_docstring():
    for name in un.__all__:
        assert f"`un.{name}" in DOCS["python.md"], name
        assert getattr(un, name).__doc__, name
    assert set(un.__all__) <= set(dir(un))


def public_members(kind):
    """Of a public class, the names that are for its users and are told by a docstring of ours."""
    for name in dir(kind):
        member = getattr(kind, name)
        ours = str(getattr(getattr(member, "fget", member), "__module__", "")).startswith("universal_neurons")
        if not name.startswith("_") and not name.isupper() and ours:
            yield name, member


def test_every_member_of_a_public_class_has_a_docstring():
    for name in un.__all__:
        if isinstance(getattr(un, name), type):
            for member, thing in public_members(getattr(un, name)):
                assert thing.__doc__, f"{name}.{member}"


def test_the_sites_reference_leaves_nothing_out():
    pages = all_pages()
    for name in (name for name in app if not name.startswith("-")):
        assert f"## uneurons {name}\n" in pages["commands"]
    for kind in (StudyConfig, DynamicsConfig, un.DiffConfig, un.RoleSettings, Published):
        for name, field in kind.model_fields.items():
            assert f"| `{name}` | " in pages["settings"]
            assert field.description.replace("|", "\\|") in pages["settings"], name
    for name in un.__all__:
        assert f":: universal_neurons.{name}\n" in pages["python"]
    for kind, tables in WORDS.items():
        for table in tables if kind != "shared" else ():
            assert f"### `{table}`\n" in pages["tables"]
            assert all(unit and meaning for _, unit, meaning in columns(WORDS, kind, table).values()), table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nowhere](nowhere.md)", "nowhere.md"),
        ("[no heading](#no-heading)", "no-heading"),
        ("$\\frac{1}$", "formula"),
        ("all is well: $\\rho > 0.5$", ""),
    ],
)
def test_what_is_wrong_with_a_page_of_the_site_stops_it(text, said, tmp_path, capfd):
    sphinx = pytest.importorskip("sphinx.cmd.build")
    (tmp_path / "index.md").write_text(f"# A page\n\n{text}\n")
    from make_site import STRICT

    code = sphinx.main([*STRICT, "-b", "html", str(tmp_path), str(tmp_path / "out")])
    assert (code != 0) == bool(said)
    assert said in capfd.readouterr().err


def test_the_sites_style_brings_the_fonts_that_it_names():
    static = ROOT / "docs/site/static"
    fonts = re.findall(r'url\("(.+?)"\)', (static / "site.css").read_text(encoding="utf-8"))
    assert fonts
    for font in fonts:
        assert (static / font).read_bytes().startswith(b"wOF2")
        assert list((static / font).parent.glob("OFL.txt"))


def test_the_store_page_lists_every_column_as_it_is_described():
    assert filled(DOCS["store.md"]) == DOCS["store.md"], "run: python docs/site/store_page.py"
    listed = [(kind, name) for _, kind, name, _ in LIST.findall(DOCS["store.md"])]
    assert sorted(listed) == sorted(
        [("shared", "all"), *((kind, name) for kind, tables in WORDS.items() if kind != "shared" for name in tables)]
    )


def test_every_docs_page_is_linked_from_the_readme():
    for name in DOCS:
        assert f"docs/{name}" in README, name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("name", ["README.md", *sorted(DOCS)])
def test_sentences_are_short_and_numbers_have_their_zero(name):
    page = {"README.md": README, **DOCS}[name]
    if name == "explorer.md":
        page = page.partition("\n## Words\n")[0]  # these are the pages' own, held to them by a test
    assert not long_sentences(page)
    assert not bare_numbers(page)


def test_what_a_long_sentence_and_a_bare_number_are():
    words = "word " * 30
    for page in (
        f"{words}word.",
        f"- a\n- {words}word",
        f"| a |\n|---|\n| {words}word |",
        f"Short. {words[:-1]}; word.",
    ):
        assert len(long_sentences(page)) == 1, page
    for page in (
        f"{words[:-1]}. {words[:-1]}: {words}",
        f"a\n\n    {words}word\n\nb",
        f"```\n{words}word\n```",
        f"[a](b.md) {words[5:]}",
    ):
        assert not long_sentences(page), page
    assert bare_numbers("ρ .69\n0.69\n(.5) `.9`\n−.1 a.1") == ["ρ .69", "(.5) `.9`", "−.1 a.1"]
    assert not bare_numbers("0.69, 1.0.2, `a.1`, a….7z")


PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "src/universal_neurons/bundled").rglob("README.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere_from_their_own_page(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_numbers_have_their_zero_on_every_page(page):
    assert not bare_numbers(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_whole(page):
    """A row that follows an empty line belongs to no table: every table begins with a heading and its rule."""
    lines = ["", *page.read_text(encoding="utf-8").splitlines()]
    for before, line, after in zip(lines, lines[1:], [*lines[2:], ""]):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|[\s:|-]+\|", after), line


def test_all_commands_are_listed_wherever_they_are():
    names = {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"^    uneurons (\w+)", DOCS["design.md"], re.MULTILINE)) == names
    docstring = (ROOT / "src/universal_neurons/cli/commands.py").read_text().split("\n\n", 1)[0]
    assert set(re.findall(r"\w+", docstring.partition(":")[2])) == names


def test_every_module_has_a_docstring_and_stays_short():
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        assert len(text.splitlines()) <= 400, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_runs_are_valid_and_their_counts_add_up(path):
    config = make_config(yaml.safe_load(path.read_text()))
    assert config.published is not None
    assert sum(config.published.universal_per_layer) == config.published.universal
    assert len(config.models) == (4 if path.stem == "pythia-160m" else 5)
    assert config.max_tokens == 100_000_000


def test_the_code_of_roles_and_labels_runs(monkeypatch):
    """Whole blocks as they stand; in the place of studies, what they are asked."""
    asked = {}
    monkeypatch.setattr(un, "run_study", lambda config, labels: asked.update(config=config, labels=labels))
    monkeypatch.setattr(un, "study_roles", lambda path: SimpleNamespace(table=lambda name: asked.update(table=name)))
    names = {}
    for page in ("roles.md", "labels.md"):
        for block in re.findall(r"```python\n(.*?)```", DOCS[page], re.DOTALL):
            exec(block, names)
    clean = names["model"].logits(names["ids"])
    assert clean.shape == names["logits"].shape
    assert not torch.equal(clean, names["logits"])
    assert asked["table"] == "ablations"
    assert [asked["labels"]["colour"](token) for token in (" red", " read")] == [True, False]


def test_every_column_is_described(tmp_path, folders, text_file):
    models = tuple(map(str, folders[:2]))
    store = un.run_study(
        un.StudyConfig(
            models=models,
            data=str(text_file),
            out=str(tmp_path / "r"),
            draws=2,
            subset=("all",),
            roles=FEW_ROLES,
            pairs="all",
            null="untrained",
            null_draws=1,
        ),
        progress=False,
    )
    names = (
        "neurons",
        "matches",
        "sinks",
        "layers",
        "correlations",
        "convergence",
        "subsets",
        "labels",
        "label_counts",
        "explanations",
        "examples",
        "counterparts",
        "tokens",
        "positions",
        "vocabulary",
        "thresholds",
        "null",
        "anchors",
        "cliques",
        "clique_levels",
        "one_to_one",
        "consistency",
        "consistency_levels",
        "similarity",
    )
    roles = (
        "effects",
        "ensembles",
        "interventions",
        "ablations",
        "heads",
        "attention",
        "functional",
        "functional_gains",
        "costs",
        "unembeddings",
        "spectrum",
        "preconditions",
    )
    drawn = {"details", "effect_histograms", "class_histograms", "head_scores", "attention_samples"}
    written = {path.stem for path in store.path.glob("*.parquet")}
    assert {*names, *roles, *drawn} >= written >= {*names, *roles, *drawn} - {"ensembles"}
    for name in names:
        for column in store.table(name).columns:
            assert column in DOCS["design.md"], (name, column)
    for name in written:
        require_described(store.table(name), name)
