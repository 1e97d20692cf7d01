"""A small diff with a change of every kind, a null and a second text, whose models have names that pages take badly.

Test modules name it as their plugin: `pytest_plugins = ["diffed"]`.
"""

import pytest
from conftest import some_text
from planted import drifted, planted_pair, some_tokens

import universal_neurons as un

NAMES = ("</script><b>base", 'tuned"><img src=x onerror="window.pwned=1">')


@pytest.fixture(scope="session")
def shown_diff(tmp_path_factory) -> un.Diff:
    """A base of OPT's architecture and its fine-tune, units of the last layer changed in every way."""
    root = tmp_path_factory.mktemp("shown")
    second = root / "second.txt"
    second.write_text(some_text(3000))
    base, tuned = planted_pair("opt")
    base.name, tuned.name = NAMES
    config = un.DiffConfig(
        models=NAMES, out=str(root / "base-to-tuned"), data_tuned=str(second), draws=2, top_k=2, max_tokens=5120,
        stages=("weights", "statistics", "labels", "universality"), labels=("tokens",), unexplained=0.01, effects=0,
    )  # fmt: skip
    nulls = [drifted(base, f"null <i>{seed}", seed) for seed in range(2, 7)]
    return un.run_diff(config, models=[base, tuned], nulls=nulls, tokens=some_tokens(), progress=False)
