"""Training dynamics: the universal neurons of several seeds at every checkpoint of their training.

1. Find the checkpoints that all seeds have (`training_runs`).
2. At each, an ordinary study of the seeds' models of that step on the same text, in OUT/steps/STEP; one that is
   complete is not repeated.
3. Correlate every neuron of every seed at each checkpoint with itself at the last, on the held-out rows: two models in
   memory at a time, the same five sums and jackknife as for matches (`heldout`).
4. What changed between the checkpoints, as tables (`emergence`).

OUT/dynamics.json comes last.  Interrupted, the same command goes on; where a seed has new checkpoints it adds them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import polars as pl

from universal_neurons.config import BUNDLED, DYNAMICS_FILE, DynamicsConfig, StudyConfig
from universal_neurons.dynamics.emergence import (
    CheckpointStudy,
    checkpoints_table,
    emergence_table,
    families_table,
    history,
    neurons_table,
)
from universal_neurons.dynamics.finished import Dynamics, step_folder
from universal_neurons.dynamics.self_correlation import SelfCorrelations, self_correlations
from universal_neurons.dynamics.training_runs import Checkpoint, Training, find_training
from universal_neurons.errors import CheckpointError
from universal_neurons.models import find_tokenizer, load_tokenizer, require_weights, resolve_sources
from universal_neurons.progress import Reporter
from universal_neurons.storage import Store, StoreWriter
from universal_neurons.study import (
    decide,
    require_neurons,
    require_no_masked_sinks,
    require_same_tokenizer,
    run_folder,
    run_study,
)
from universal_neurons.units import Units

SHAPE = ("architecture", "layers", "d_mlp")


def run_dynamics(config: DynamicsConfig, *, progress: bool = True, reporter: Reporter | None = None) -> Dynamics:
    """Study the dynamics of some training runs, or go on with it, and return them.

    Raises an `InputError` for what cannot be studied and a `StudyError` for what went wrong on the way (run it again to
    resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    require_no_masked_sinks(config, "training dynamics", "every checkpoint has others, and would be of another text")
    require_neurons(config.models, "training dynamics")
    training = find_training(config.models, config.revisions, config.final_step)
    for note in training.notes:
        reporter.note(note)
    sources = [resolve_sources(checkpoint.models) for checkpoint in training.checkpoints]
    for source in chain.from_iterable(sources):
        require_weights(source)
    tokenizer = _tokenizer_of(config, training)
    settled = DynamicsConfig(**decide(config.study(), len(training.seeds)).model_dump() | _dynamics_settings(config))
    out = config.out or _default_out(config, training)
    with StoreWriter(out, DYNAMICS_FILE) as writer:
        writer.claim({"config": settled.stored()})
        stores = []
        for number, checkpoint in enumerate(training.checkpoints, start=1):
            reporter.note(f"checkpoint {checkpoint.name} ({number} of {len(training.checkpoints)})")
            study = settled.study(
                models=checkpoint.models, out=str(step_folder(writer.path, checkpoint.name)), tokenizer=tokenizer
            )
            stores.append(run_study(study, reporter=Reporter(quiet=reporter.quiet, console=reporter.console)))
            _require_same_shapes(training, stores)
        manifest = {
            "config": settled.stored(),
            "seeds": list(training.seeds),
            "tokens": stores[0].manifest["tokens"],
            "checkpoints": [_described(c, store) for c, store in zip(training.checkpoints, stores)],
        }
        earlier = writer.require_same(manifest)
        if earlier is not None and earlier["complete"]:
            complete = Dynamics(writer.path)
            missing = complete.missing_files()
            if not missing and earlier["checkpoints"] == manifest["checkpoints"]:
                reporter.note(f"{writer.path} is complete already")
                return complete
        writer.write_manifest({"complete": False} | manifest)
        tables = _tables(training, stores, self_correlations(training, stores, writer, reporter))
        hashes = {name: writer.write_table(name, table) for name, table in tables.items()}
        environment = {"environment": stores[-1].manifest["environment"]}
        writer.write_manifest({"complete": True} | manifest | {"tables": hashes} | environment)
        return Dynamics(writer.path)


def _dynamics_settings(config: DynamicsConfig) -> dict[str, Any]:
    """The settings that a study has not."""
    names = ("models", *(DynamicsConfig.model_fields.keys() - StudyConfig.model_fields.keys()))
    return {name: getattr(config, name) for name in names}


def _tokenizer_of(config: DynamicsConfig, training: Training) -> str | None:
    """The tokenizer for checkpoints that bring none: the one that is named, or of the first seed whose folder has one.

    Raises `TokenizerError` where the seeds' differ.
    """
    readers = {}
    named = config.tokenizer
    if named is not None:
        readers[f"--tokenizer {named}"] = find_tokenizer(config, [])
    for name, folder in zip(training.seeds, training.folders):
        tokenizer = None if folder is None else load_tokenizer(folder)
        if tokenizer is not None:
            readers[name] = tokenizer
            named = named or str(folder)
    require_same_tokenizer(readers)
    return named


def _default_out(config: DynamicsConfig, training: Training) -> str:
    """runs/NAME-dynamics, after the seeds and the text."""
    name = BUNDLED if config.models == (BUNDLED,) else "-vs-".join(training.seeds[:2])
    if len(training.seeds) > 2 and config.models != (BUNDLED,):
        name = f"{training.seeds[0]}-vs-{len(training.seeds) - 1}-seeds"
    return run_folder(f"{name}-dynamics", config.data)


def _require_same_shapes(training: Training, stores: Sequence[Store]) -> None:
    """A neuron must be there at every checkpoint of its seed: the latest study's models are like the first's."""
    for index, seed in enumerate(training.seeds):
        first = _shape(stores[0], index)
        last = _shape(stores[-1], index)
        if first != last:
            raise CheckpointError(
                f"{seed}: checkpoint {training.checkpoints[len(stores) - 1].name} is another kind of model",
                given="{}, {} layers of {} neurons".format(*last),
                wanted="{}, {} layers of {} neurons, as at the first".format(*first),
            )


def _shape(store: Store, index: int) -> list[Any]:
    facts = store.manifest["models"][index]
    return [*(facts[key] for key in SHAPE), Units.of_facts(facts)]


def _described(checkpoint: Checkpoint, store: Store) -> dict[str, Any]:
    """What the manifest keeps of a checkpoint and its study."""
    weights = [model["sha256"] for model in store.manifest["models"]]
    return checkpoint.describe() | {"sha256": weights, "tables": store.manifest["tables"]}


def _tables(training: Training, stores: Sequence[Store], selves: SelfCorrelations) -> dict[str, pl.DataFrame]:
    """All tables, by name."""
    reference, *others = training.seeds
    config = stores[-1].config
    studies = [_study_of(training, c, store) for c, store in zip(training.checkpoints, stores)]
    course = history(studies, reference, others)
    tables = {
        "checkpoints": checkpoints_table(studies, course, reference, config.threshold),
        "neurons": neurons_table(studies, course, reference, selves),
        "emergence": emergence_table(studies, course, reference),
    }
    if "labels" in config.stages:
        tables["families"] = families_table(studies)
    return tables


def _study_of(training: Training, checkpoint: Checkpoint, store: Store) -> CheckpointStudy:
    """A study's rows, by the names of the seeds in place of its models'."""
    seeds = dict(zip(store.models, training.seeds))
    neurons = store.neurons.with_columns(pl.col("model").replace_strict(seeds))
    matches = store.matches.filter(pl.col("rank") == 1)
    matches = matches.with_columns(pl.col("model", "match_model").replace_strict(seeds))
    units = {seeds[model]: of_model for model, of_model in store.units.items()}
    return CheckpointStudy(checkpoint, neurons, matches, units)
