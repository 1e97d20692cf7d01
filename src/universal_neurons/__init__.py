"""universal-neurons: which neurons does every training run of a language model find again?

The public names are loaded when first used, so that `import universal_neurons` costs nothing.  Three settings of torch
are read when it is imported or first computes.  Waiting threads sleep (OMP_WAIT_POLICY): threads that spin make two
studies on the same cores crawl.  Tensors of 2 MiB and more get large pages (THP_MEM_ALLOC_ENABLE), which are faster to
fill.  oneDNN keeps the code of so many shapes of products (ONEDNN_PRIMITIVE_CACHE_CAPACITY), of some 0.6 MiB each.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from universal_neurons import moved  # noqa: F401 - modules by their former names

if TYPE_CHECKING:
    from universal_neurons.config import DynamicsConfig, StudyConfig
    from universal_neurons.diff import Diff, DiffConfig, run_diff
    from universal_neurons.dynamics import Dynamics, run_dynamics
    from universal_neurons.features import ModelFeatures, features_of
    from universal_neurons.interventions import Edit, Losses, ablate, frozen_norm, intervene, loss, without_path
    from universal_neurons.models import Model, ProcessedWeights, load_model, processed_weights
    from universal_neurons.role_settings import RoleSettings
    from universal_neurons.storage import Store
    from universal_neurons.study import explain, make_sketch, run_study, study_roles
    from universal_neurons.text import TokenDataset

__version__ = "0.1.0"

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_HOMES = {
    "Diff": "diff",
    "DiffConfig": "diff",
    "Dynamics": "dynamics",
    "DynamicsConfig": "config",
    "Edit": "interventions",
    "Losses": "interventions",
    "Model": "models",
    "ModelFeatures": "features",
    "ProcessedWeights": "models",
    "RoleSettings": "role_settings",
    "Store": "storage",
    "StudyConfig": "config",
    "TokenDataset": "text",
    "ablate": "interventions",
    "explain": "study",
    "features_of": "features",
    "frozen_norm": "interventions",
    "intervene": "interventions",
    "load_model": "models",
    "loss": "interventions",
    "make_sketch": "study",
    "processed_weights": "models",
    "run_diff": "diff",
    "run_dynamics": "dynamics",
    "run_study": "study",
    "study_roles": "study",
    "without_path": "interventions",
}

__all__ = [
    "Diff",
    "DiffConfig",
    "Dynamics",
    "DynamicsConfig",
    "Edit",
    "Losses",
    "Model",
    "ModelFeatures",
    "ProcessedWeights",
    "RoleSettings",
    "Store",
    "StudyConfig",
    "TokenDataset",
    "ablate",
    "explain",
    "features_of",
    "frozen_norm",
    "intervene",
    "load_model",
    "loss",
    "make_sketch",
    "processed_weights",
    "run_diff",
    "run_dynamics",
    "run_study",
    "study_roles",
    "without_path",
]


_GIVE_STORES = ("Diff", "Dynamics", "Store", "explain", "run_diff", "run_dynamics", "run_study", "study_roles")


def __getattr__(name: str) -> Any:
    if name in _GIVE_STORES:
        import_module("universal_neurons.report.representations")
    if name in _HOMES:
        return getattr(import_module(f"universal_neurons.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
