"""A small study that tests of what is made of studies share.

Test modules name it as their plugin: `pytest_plugins = ["explored"]`.
"""

import pytest
from conftest import FEW_ROLES

import universal_neurons as un


@pytest.fixture(scope="session")
def study(tmp_path_factory, folders, text_file):
    """Two tiny models, with families and roles."""
    return un.run_study(
        un.StudyConfig(
            models=tuple(map(str, folders[:2])), data=str(text_file), out=str(tmp_path_factory.mktemp("study") / "s"),
            draws=2, labels=("tokens", "unigrams"), unexplained=0.01, roles=FEW_ROLES,
        ),
        progress=False,
    )  # fmt: skip
