"""Modules by the names that they had when they lay side by side: imported as before, with a `DeprecationWarning`."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
MOVED = {
    "accumulators": "statistics.contract",
    "architectures": "models.architectures",
    "baselines": "matching.baselines",
    "categories": "labels.categories",
    "check": "study.check",
    "checkpoints": "models.locations",
    "cluster": "passes.cluster",
    "comoments": "statistics.comoments",
    "compare": "matching.comparison",
    "convergence": "matching.convergence",
    "convert": "models.to_safetensors",
    "corpora": "text.corpora",
    "correlation": "matching.correlation",
    "detail": "matching.heldout",
    "dynamics_view": "report.dynamics_summary",
    "emergence": "dynamics.emergence",
    "estimate": "study.estimate",
    "examples": "statistics.examples",
    "explainer": "study.family_tables",
    "families": "labels.families",
    "figures": "report.figures",
    "figures.attention": "report.figures.attention",
    "figures.dynamics": "report.figures.dynamics",
    "figures.families": "report.figures.families",
    "figures.interventions": "report.figures.interventions",
    "figures.prediction": "report.figures.prediction",
    "figures.properties": "report.figures.properties",
    "figures.roles": "report.figures.roles",
    "figures.style": "report.figures.style",
    "figures.universality": "report.figures.universality",
    "findings": "matching.pieces",
    "generations": "storage.snapshots",
    "heads": "interventions.heads",
    "inputs": "study.inputs",
    "integrity": "report.integrity",
    "jackknife": "statistics.jackknife",
    "labelling": "labels.study_labels",
    "lanes": "passes.lanes",
    "leftovers": "storage.leftovers",
    "manifest": "storage.manifest",
    "moments": "statistics.moments",
    "network": "models.model",
    "neuron_view": "report.one_neuron",
    "neurons": "statistics.neuron_columns",
    "overlap": "passes.prefetch",
    "own_labels": "labels.own_labels",
    "panels": "passes.panels",
    "paths": "interventions.paths",
    "plan": "study.resolve",
    "readout": "interventions.readout",
    "records": "text.records",
    "representations": "report.representations",
    "results": "storage.results",
    "rewriting": "storage.rewriting",
    "roles.again": "study.roles_again",
    "screen": "study.screen",
    "screening": "matching.candidates",
    "selection": "matching.selection",
    "self_correlation": "dynamics.self_correlation",
    "shown": "study.shown",
    "sketch": "statistics.signed_sums",
    "sketch_file": "storage.sketch_file",
    "sketched": "features.sketched",
    "sketching": "study.sketch_maker",
    "stages": "study.stages",
    "store": "storage.store",
    "stored_code": "labels.stored_code",
    "stream": "passes.one_pass",
    "summary": "report.summary",
    "syntax": "labels.syntax",
    "tables": "study.tables",
    "text_files": "text.text_files",
    "token_tests": "labels.token_tests",
    "tokenizer": "models.tokenizer",
    "tokens": "text.tokens",
    "topics": "labels.topics",
    "training": "dynamics.training_runs",
    "trials": "interventions.trial",
    "user_code": "labels.user_code",
    "verification": "models.verification",
    "vocabulary": "text.vocabulary",
    "weight_files": "models.weight_files",
    "weight_names": "models.weight_names",
    "weights": "models.weights",
}


class Moved(MetaPathFinder, Loader):
    """Finds a module by its former name; it is the module of the new one, not a copy."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec for a former name, else None."""
        package, _, former = name.partition(".")
        return ModuleSpec(name, self) if package == PACKAGE and former in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module where it is now."""
        new = f"{PACKAGE}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        self._own = import_module(new).__spec__
        return sys.modules[new]

    def exec_module(self, module: ModuleType) -> None:
        """It ran where it is; it keeps the spec that it has there."""
        module.__spec__ = self._own


sys.meta_path.insert(0, Moved())  # before a former package's path is searched
