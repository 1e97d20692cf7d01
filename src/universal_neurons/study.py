"""A `StudyConfig` to a store, in order: models, tokens, the pass, comparison, the detail pass, tables, pages.

Interrupted and started again, a study goes on from the last checkpoint of its pass and ends with the same bytes.
"""

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_neurons import __version__
from universal_neurons.checkpoints import bundled_models, expand_bundled, folder_of, resolve_sources
from universal_neurons.compare import Comparison, Evidence, compare
from universal_neurons.config import BUNDLED, StudyConfig
from universal_neurons.convergence import Snapshots, snapshot_points
from universal_neurons.detail import HeldOut, PairedMoments
from universal_neurons.errors import ConfigError, ContextError, NothingToCompareError, TextError, TokenizerError
from universal_neurons.estimate import require_memory
from universal_neurons.models import DTYPES, Model, load_model, load_tokenizer, verify
from universal_neurons.progress import Reporter, clock
from universal_neurons.store import Store, StoreWriter, disk_errors
from universal_neurons.stream import NeuronSource, Pass, model_pairs, study_accumulators
from universal_neurons.tables import Shape, layers_table, matches_table, neurons_table, subsets_table
from universal_neurons.tokens import Shard, TokenDataset, tokenizer_digest

CHECKPOINT_SHARE = 0.02
CHECKPOINT_SECONDS = 10.0
PAPER_CONTEXT = 512
IN_MEMORY = "in-memory"
FINGERPRINTED = ("torch", "transformers", "tokenizers", "polars", "numpy", "scipy")


def run_study(
    config: StudyConfig,
    *,
    models: Sequence[Model] | None = None,
    tokens: TokenDataset | None = None,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Run (or resume) a study and return its store.

    `models` and `tokens` may be given as objects in place of what `config` names.  Checkpoints are written at most
    every `checkpoint_seconds`; by default so that they cost about 2 % of the pass.  Raises an `InputError` for what
    cannot be studied (nothing is written) and a `StudyError` for what went wrong on the way (run it again to resume).
    """
    reporter = reporter or Reporter(quiet=not progress)
    config = resolve(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with reporter.stage("models"):
        loaded = list(models) if models is not None else load_models(config)
        if models is not None:
            config = from_objects(config, loaded)
        digest = require_kin(loaded, config)
    if tokens is not None:
        config = config.model_copy(update={"data": IN_MEMORY, "context": tokens.context})
    config = with_context(config, loaded)
    reporter.note(f"{loaded[0].name} against {', '.join(m.name for m in loaded[1:])}, {config.device}, {config.dtype}")
    with StoreWriter(config.out or default_out(config, loaded)) as writer:
        writer.claim(identity(config, loaded))
        with reporter.stage("tokens"):
            packed = tokens if tokens is not None else _tokens(config, loaded, writer)
        study = Study(config, loaded, packed, digest)
        require_memory(config, loaded, groups=study.n_groups)
        if writer.begin(study.manifest()):
            reporter.note(f"{writer.path} is complete already")
            return Store(writer.path)
        for text in (repr(packed), *packed.notes, *study.notes):
            reporter.note(text)
        return study.run(writer, reporter, checkpoint_seconds)


def from_objects(config: StudyConfig, models: Sequence[Model]) -> StudyConfig:
    """The configuration as models that were given as objects make it; each is checked as a loaded one is."""
    for model in models:
        verify(model)
    devices = {str(model.device) for model in models}
    dtypes = {str(model.dtype).removeprefix("torch.") for model in models}
    if len(devices) > 1 or len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ConfigError(
            "the models differ in device or precision, or have one that is not supported",
            given=f"{sorted(devices)}, {sorted(dtypes)}",
            wanted="one device, and one of " + ", ".join(DTYPES),
            fix="move them with .to(...)",
        )
    names = tuple(f"{IN_MEMORY}:{model.name}" for model in models)
    return config.model_copy(update={"models": names, "device": devices.pop(), "dtype": dtypes.pop()})


def identity(config: StudyConfig, models: Sequence[Model]) -> dict[str, Any]:
    """What, with the tokens, tells one study from another."""
    return {
        "config": config.model_dump(mode="json", exclude={"out"}),
        "models": [model.describe() for model in models],
    }


def resolve(config: StudyConfig) -> StudyConfig:
    """The configuration with every `auto` decided."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    known = ["cpu", "cuda"[: 4 * torch.cuda.is_available()], *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if device not in known:
        raise ConfigError(f"device {device!r} is not there", wanted="one of " + ", ".join(filter(None, known)))
    kind = torch.device(device).type
    native = "bfloat16" if kind == "cuda" else "float32"
    return config.model_copy(
        update={
            "models": tuple(expand_bundled(config.models)),
            "device": device,
            "dtype": native if config.dtype == "auto" else config.dtype,
            "gemm_dtype": native if config.gemm_dtype == "auto" else config.gemm_dtype,
            "batch_tokens": config.batch_tokens or (16_384 if kind == "cuda" else 2_048),
            "draws": config.n_draws,
        }
    )


def load_models(config: StudyConfig) -> list[Model]:
    """The models of a resolved configuration."""
    if any(model.startswith(IN_MEMORY) for model in config.models):
        raise ConfigError("this study was made of models in memory", wanted="folders or hub ids", fix="name --models")
    if len(config.models) < 2:
        raise NothingToCompareError(
            "one model alone has nothing to be compared with",
            given=config.models[0],
            wanted="two models or more",
            fix="repeat --models; the first is the reference",
        )
    sources = resolve_sources(config.models)
    return [load_model(source, device=config.device, dtype=config.dtype) for source in sources]


def require_kin(models: Sequence[Model], config: StudyConfig) -> str | None:
    """Check that models can be studied together; returns the digest of the tokenizer they share, if any has one."""
    if len(models) < 2:
        raise NothingToCompareError("one model alone has nothing to be compared with", wanted="two models or more")
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError("two models have the same name", given=", ".join(names), fix="give them different names")
    readers = {model.name: model.tokenizer for model in models if model.tokenizer is not None}
    if config.tokenizer is not None:
        readers[f"--tokenizer {config.tokenizer}"] = find_tokenizer(config, models)
    digests = {name: tokenizer_digest(tokenizer) for name, tokenizer in readers.items()}
    first = next(iter(digests), None)
    for name, digest in digests.items():
        if first is not None and digest != digests[first]:
            raise TokenizerError(
                "different tokenizers",
                given=f"{first} and {name} differ in vocabulary or merges",
                wanted="models that read the same tokens",
                fix="leave one out; correlations are over token positions, which must be the same",
            )
    return digests[first] if first else None


def with_context(config: StudyConfig, models: Sequence[Model]) -> StudyConfig:
    """The configuration with its context decided: 512, the paper's, or the shortest the models can read."""
    shortest = min(models, key=lambda model: model.context)
    context = config.context or min(PAPER_CONTEXT, shortest.context)
    if context > shortest.context:
        raise ContextError(
            f"{shortest.name} cannot read rows of {context} tokens",
            given=f"--context {context}",
            wanted=f"at most {shortest.context}",
            fix=f"--context {shortest.context}",
        )
    return config.model_copy(update={"context": context})


def default_out(config: StudyConfig, models: Sequence[Model]) -> str:
    """runs/NAME: `bundled`, or the models' names and the corpus's."""
    if list(config.models) == bundled_models():
        name = BUNDLED
    else:
        name = "-vs-".join([models[0].name, models[1].name if len(models) == 2 else f"{len(models) - 1}-models"])
    corpus = Path(config.data).name.split(".")[0]
    name = name.replace("/", "-")
    return str(Path("runs") / (name if config.data == BUNDLED else f"{name}-on-{corpus}"))


def find_tokenizer(config: StudyConfig, models: Sequence[Model]) -> Any:
    """The tokenizer that is asked for, or the first that a model has."""
    if config.tokenizer is not None:
        found = load_tokenizer(folder_of(config.tokenizer))
    else:
        found = next((model.tokenizer for model in models if model.tokenizer is not None), None)
    if found is None:
        raise TokenizerError(
            f"{config.tokenizer or models[0].name}: no tokenizer there",
            wanted="tokenizer.json or another tokenizer's files",
            fix="--tokenizer FOLDER",
        )
    return found


def _tokens(config: StudyConfig, models: Sequence[Model], writer: StoreWriter) -> TokenDataset:
    assert config.context is not None
    with disk_errors(writer.path):
        return TokenDataset.load(
            config, find_tokenizer(config, models), context=config.context, folder=writer.prepare()
        )


class Study:
    """A study whose inputs are all there."""

    def __init__(self, config: StudyConfig, models: Sequence[Model], tokens: TokenDataset, digest: str | None) -> None:
        self.config, self.models, self.tokens, self.tokenizer_digest = config, models, tokens, digest
        self.names = [model.name for model in models]
        self.askers = self.names if config.pairs == "all" else self.names[:1]
        self.shapes = {model.name: Shape(model.n_layers, model.d_mlp) for model in models}
        for model in models:
            tokens.require_vocabulary(model.vocab_size, model.name)
        self._require_mask()
        chosen, self.stretches = tokens.split(config.heldout_tokens)
        self.subsets, self.notes = self._subsets(chosen)
        self.n_groups = len(self.subsets) + (len(self.subsets) < len(tokens.subset_names))
        self.shards = tokens.shards(chosen, self.subsets)
        assert all(shard.group < self.n_groups for shard in self.shards)
        assert config.batch_tokens is not None
        self.batch_tokens = config.batch_tokens

    def _require_mask(self) -> None:
        smallest = min(model.vocab_size for model in self.models)
        outside = [rule for rule in self.config.mask if isinstance(rule, int) and rule >= smallest]
        if outside:
            raise ConfigError(f"mask names token {outside[0]}", wanted=f"an id < {smallest}", fix="remove it")

    def _subsets(self, chosen: np.ndarray) -> tuple[list[str], list[str]]:
        """Subsets to study apart; one whose rows are all held out has nothing to choose from."""
        names = self.tokens.groups(self.config.subset)
        there = {self.tokens.subset_names[n] for n in set(self.tokens.subsets[chosen].tolist())}
        without = [name for name in names if name not in there]
        if without and tuple(self.config.subset) != ("all",):
            raise TextError(
                f"subset {without[0]!r} has no rows besides the held-out ones",
                wanted="a subset of more rows",
                fix="give more text of it, or leave it out",
            )
        notes = [f"subset {name}: too small to be studied apart" for name in without]
        return [name for name in names if name in there], notes

    def manifest(self) -> dict[str, Any]:
        """The study's identity and the environment it runs in."""
        return {
            **identity(self.config, self.models),
            "tokens": {
                "fingerprint": self.tokens.fingerprint,
                "tokenizer": self.tokenizer_digest,
                "rows": len(self.tokens),
                "tokens": self.tokens.n_tokens,
                "heldout_rows": int(sum(map(len, self.stretches))),
                "subsets": list(self.tokens.subset_names),
            },
            "environment": {
                "universal_neurons": __version__,
                **{name: version(name) for name in FINGERPRINTED},
                "python": platform.python_version(),
                "machine": platform.machine(),
                "device": torch.cuda.get_device_name(self.config.device)
                if self.config.device.startswith("cuda")
                else "cpu",
                "threads": torch.get_num_threads(),
            },
        }

    def run(self, writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None) -> Store:
        """All stages after the inputs."""
        sources = [NeuronSource(model, DTYPES[self.config.gemm_dtype]) for model in self.models]
        with reporter.stage("pass"):
            run, snapshots = self._pass(sources, writer, reporter, checkpoint_seconds)
        with reporter.stage("compare"):
            everything = Evidence(run.accumulators, sorted({a.group for a in run.accumulators if a.count}))
            comparisons = [self._compare(everything, asker) for asker in self.askers]
            by_subset = {
                name: self._compare(Evidence(run.accumulators, [group]), self.names[0])
                for group, name in enumerate(self.subsets)
            }
            dead = {name: everything.dead(name).cpu().numpy() for name in self.names}
            counted = everything.count(self.names[0])
        run.accumulators.clear()
        with reporter.stage("detail"):
            heldout = self._detail(sources, comparisons, reporter)
        with reporter.stage("tables"):
            threshold = self.config.threshold
            tables = {
                "neurons": neurons_table(self.shapes, dead, comparisons, heldout, threshold),
                "matches": matches_table(self.shapes, comparisons, heldout),
                "layers": layers_table(self.shapes, comparisons),
                "convergence": snapshots.table(threshold),
            }
            if by_subset:
                tables["subsets"] = subsets_table(self.shapes, by_subset, threshold)
            hashes = {name: writer.write_table(name, table) for name, table in tables.items()}
        manifest = self.manifest() | {
            "counted_tokens": counted,
            "tables": hashes,
            "timings": {name: round(seconds, 3) for name, seconds in reporter.timings.items()},
        }
        store = writer.finish(manifest)
        reporter.note("all stages: " + ", ".join(f"{name} {clock(s)}" for name, s in reporter.timings.items()))
        return store

    def _compare(self, evidence: Evidence, asker: str) -> Comparison:
        others = [name for name in self.names if name != asker]
        return compare(evidence, asker, others, self.config, k=self.config.top_k)

    def _pass(
        self, sources: list[NeuronSource], writer: StoreWriter, reporter: Reporter, checkpoint_seconds: float | None
    ) -> tuple[Pass, Snapshots]:
        shuffles = self.config.n_draws if self.config.baseline == "permutation" else 0
        run = Pass(
            sources,
            study_accumulators(
                self.models,
                model_pairs(self.models, self.config.pairs),
                groups=self.n_groups,
                shuffles=shuffles,
                seed=self.config.seed,
            ),
        )
        snapshots = Snapshots(snapshot_points(len(self.shards)))
        saved = writer.load_checkpoint()
        if saved is not None:
            run.restore(*saved)
            snapshots.restore(saved[0])
            reporter.note(f"resumed after shard {run.next_shard} of {len(self.shards)}")
        last, interval = time.perf_counter(), checkpoint_seconds

        def after_shard(shard: Shard) -> None:
            nonlocal last, interval
            snapshots.look(run, self.askers, self.names, self.config)
            now = time.perf_counter()
            due = interval if interval is not None else CHECKPOINT_SECONDS
            if now - last >= due or run.next_shard == len(self.shards):
                writer.save_checkpoint(run.state() | snapshots.state(), run.next_shard)
                last = time.perf_counter()
                if checkpoint_seconds is None:
                    interval = max(CHECKPOINT_SECONDS, (last - now) / CHECKPOINT_SHARE)

        positions = [len(shard.rows) * self.tokens.context for shard in self.shards]
        with reporter.tokens("pass", sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(
                self.tokens, self.shards, batch_tokens=self.batch_tokens, after_batch=meter, after_shard=after_shard
            )
        return run, snapshots

    def _detail(
        self, sources: list[NeuronSource], comparisons: Sequence[Comparison], reporter: Reporter
    ) -> dict[str, list[HeldOut]]:
        device = self.models[0].device
        moments = {
            c.asker: [
                PairedMoments.empty(c.asker, other, torch.from_numpy(index).to(device), len(self.stretches))
                for other, index in zip(c.others, c.best_index)
            ]
            for c in comparisons
        }
        run = Pass(sources, [paired for found in moments.values() for paired in found])
        shards = [Shard(index, np.asarray(rows)) for index, rows in enumerate(self.stretches)]
        total = sum(len(shard.rows) for shard in shards) * self.tokens.context
        with reporter.tokens("detail pass", total) as meter:
            run.run(self.tokens, shards, batch_tokens=self.batch_tokens, after_batch=meter)
        return {asker: [paired.result() for paired in found] for asker, found in moments.items()}
