"""A model and a corpus to a portable sketch: one pass, resumable, then a short one over the held-out rows."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_neurons import __version__
from universal_neurons.config import TEXT_SETTINGS, Settings, StudyConfig
from universal_neurons.disk import full_disk, local_path
from universal_neurons.errors import ConfigError, StoreConflictError, TokenizerError
from universal_neurons.features import NeuronSource, Studied, verify_latents
from universal_neurons.models import find_tokenizer, folder_of, load_tokenizer, resolve_sources, tokenizer_digest
from universal_neurons.passes import Pass, provisional_state, settle_from
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Extremes, LayerMoments, Recipe, ShardEnergies, Signs, SumSquares
from universal_neurons.storage import (
    CODES,
    SKETCH,
    FileInParts,
    Generations,
    KeptSums,
    Pace,
    require_free,
    scratch_folder,
    scratch_of,
    sum_rows,
    tensors_of,
)
from universal_neurons.study.resolve import decide, load_models, require_no_masked_sinks, resolve
from universal_neurons.study.run_passes import SNAPSHOT_SECONDS, SNAPSHOT_SHARE
from universal_neurons.text import Passages, Rows, Shard, TokenDataset
from universal_neurons.torch_state import settled_torch

HELDOUT = 1 << 40  # shard numbers of held-out stretches: signs of their own


def make_sketch(
    config: StudyConfig,
    *,
    tokenizers: Sequence[str] = (),
    reporter: Reporter | None = None,
    checkpoint_seconds: float | None = None,
) -> Path:
    """Write the sketch of `config.models`' one model to `config.out`; goes on where it was interrupted.

    `tokenizers` are the other models' (folders or hub ids) where these differ: then the sums are of spans, to which
    `config.pooling` pools.

    Raises what reading models and text raises, and `StoreConflictError` where `out` is there already.
    """
    reporter = reporter or Reporter()
    if len(config.models) != 1 or config.out is None:
        raise ConfigError("a sketch is of one model, in one file", given=config.models, wanted="one model, and --out")
    require_no_masked_sinks(config, "a sketch", "they are those of all models of a study, and it knows one")
    out = local_path(config.out)
    if out.suffix != SKETCH:
        wanted = f"a name that ends in {SKETCH}, by which `run` knows a sketch"
        raise ConfigError(f"--out {out}: not the name of a sketch", wanted=wanted, fix=f"--out {out}{SKETCH}")
    require_free(out)
    if not out.parent.is_dir():
        raise StoreConflictError(f"{out}: no folder {out.parent}", wanted="a folder that is there")
    config = decide(config.model_copy(update={"stages": ("statistics",), "search": "exact"}))
    with settled_torch(config.threads):
        return _sketch(config, tokenizers, out, reporter, checkpoint_seconds)


def _sketch(
    config: StudyConfig, tokenizers: Sequence[str], out: Path, reporter: Reporter, checkpoint_seconds: float | None
) -> Path:
    """The sketch of a resolved configuration."""
    (model,) = load_models(config)
    for note in model.notes:
        reporter.note(f"{model.name}: {note}")
    settings = resolve(config.model_copy(update={"pooling": None} if tokenizers else {}), [model])
    tokenizer = find_tokenizer(config, [model])
    readers = {model.name: tokenizer} | {name: _tokenizer_at(name) for name in tokenizers}
    digests = {name: tokenizer_digest(reader) for name, reader in readers.items()}
    if tokenizers and len(set(digests.values())) == 1:
        raise ConfigError(
            "--tokenizers are all the model's own", given=", ".join(tokenizers), wanted="others", fix="leave them out"
        )
    with scratch_folder(out) as scratch:
        with full_disk(out):
            tokens: Rows
            if tokenizers:
                pooling = config.pooling or "mean"
                tokens = Passages.load(settings, readers, context=settings.context, folder=scratch, pooling=pooling)
            else:
                tokens = TokenDataset.load(settings, tokenizer, context=settings.context, folder=scratch)
        tokens.require_vocabulary(model.vocab_size, model.name)
        verify_latents([model], tokens)
        for text in (repr(tokens), *tokens.notes):
            reporter.note(text)
        return _Sketching(settings, model, tokens, digests, out).run(reporter, checkpoint_seconds)


def _tokenizer_at(name: str) -> Any:
    """A tokenizer by its folder or hub id."""
    tokenizer = load_tokenizer(folder_of(name))
    if tokenizer is None:
        raise TokenizerError(f"{name}: no tokenizer there", wanted="tokenizer.json or another tokenizer's files")
    return tokenizer


class _Sketching:
    """A sketch on its way to its file."""

    def __init__(self, config: Settings, model: Studied, tokens: Rows, digests: Mapping[str, str], out: Path) -> None:
        self.config, self.model, self.tokens, self.out = config, model, tokens, out
        self.signs = Signs(config.group_size, config.seed)
        chosen, self.stretches = tokens.split(config.heldout_tokens)
        self.shards = tokens.shards(chosen)
        self.heldout = [Shard(HELDOUT + number, rows) for number, rows in enumerate(self.stretches)]
        name, n, signs = model.name, model.n_neurons, self.signs
        self.recipes: list[Recipe] = [
            partial(Extremes, name, n),
            partial(SumSquares, name, n, group=0),
            partial(ShardEnergies, name, n, signs),
            partial(LayerMoments, name, model.units),
        ]
        self.starts, rows = sum_rows(self.shards, signs, tokens.context)
        self.heldout_starts, heldout_rows = sum_rows(self.heldout, signs, tokens.context)
        empty = tensors_of([recipe(device="cpu") for recipe in self.recipes])
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "sums": (torch.bfloat16, (rows, n)),
            "heldout": (torch.bfloat16, (heldout_rows, n)),
            "mean": (torch.float32, (n,)),
            "lengths": (torch.int32, (len(tokens),)),
            "subsets": (torch.int32, (len(tokens),)),
            "n": (torch.int32, (rows,)),
            "heldout_n": (torch.int32, (heldout_rows,)),
        }
        shapes |= {name: (t.dtype if t.dtype in CODES else torch.float64, tuple(t.shape)) for name, t in empty.items()}
        shapes["layers.cross"] = (torch.float32, tuple(empty["layers.cross"].shape))
        self.about = json.dumps(self._about(digests))
        self.file = FileInParts(out, shapes, self.about)

    def _about(self, digests: Mapping[str, str]) -> dict[str, Any]:
        tokens, config = self.tokens, self.config
        if isinstance(tokens, Passages):
            of_ids: dict[str, Any] = {"masked": [], "bos": 0, "largest_id": 0}
            kind: dict[str, Any] = {"spans": {"pooling": tokens.pooling, "tokenizers": dict(digests)}}
        else:
            assert isinstance(tokens, TokenDataset)
            of_ids = {"masked": list(tokens.masked), "bos": tokens.bos, "largest_id": tokens.largest_id}
            kind = {}
        text_settings = [name for name in TEXT_SETTINGS if name != "only_subset" or config.only_subset]
        return {
            "model": self.model.describe(),
            "origin": resolve_sources(config.models)[0].given,
            "tokenizer": digests[self.model.name] if not kind else ",".join(sorted(set(digests.values()))),
            **kind,
            "signs": {"group_size": self.signs.group_size, "seed": self.signs.seed},
            "rounding": config.gemm_dtype,
            "dtype": config.dtype,
            "heldout_tokens": config.heldout_tokens,
            "text": {name: getattr(config, name) for name in text_settings},
            "tokens": {
                "fingerprint": tokens.fingerprint,
                "context": tokens.context,
                "subset_names": list(tokens.subset_names),
                **of_ids,
                "counted": tokens.counted,
            },
            "version": __version__,
        }

    def run(self, reporter: Reporter, checkpoint_seconds: float | None) -> Path:
        """Both passes, and the file."""
        generations = Generations(scratch_of(self.out), of=self.about)
        source = NeuronSource(self.model, self.config.gemm_dtype)
        kept = KeptSums(self.model.name, self.file, "sums", self.starts)
        run = Pass([source], [*self.recipes, lambda device: kept], signs=self.signs)
        saved = generations.load(reporter.note)
        if saved is not None:
            run.restore(*saved)
            settle_from(saved[0], [source])
            reporter.note(f"resumed after shard {run.next_shard} of {len(self.shards)}")
            self._mend(kept, source, self.shards[: run.next_shard], reporter)
        pace = Pace(checkpoint_seconds, SNAPSHOT_SECONDS, SNAPSHOT_SHARE)

        def after_shard(shard: Shard) -> None:
            if pace.due or run.next_shard == len(self.shards):
                started = time.perf_counter()
                self.file.sync()
                generations.save(run.state() | provisional_state([source]), run.next_shard)
                pace.written(time.perf_counter() - started)

        self._read(run, self.shards, "sketch", reporter, after_shard)
        self._read(self._heldout_pass(source), self.heldout, "held-out rows", reporter)
        assert source.provisional is not None
        self.file.put("mean", source.provisional.mean)
        self.file.put("lengths", torch.from_numpy(self.tokens.lengths))
        self.file.put("subsets", torch.from_numpy(self.tokens.subsets))
        for name, shards, starts in (("n", self.shards, self.starts), ("heldout_n", self.heldout, self.heldout_starts)):
            for shard in shards:
                self.file.put(name, torch.from_numpy(self._n(shard)), starts[shard.index])
        for name, tensor in tensors_of(run.accumulators).items():
            self.file.put(name, tensor)
        return self.file.finish()

    def _mend(self, kept: KeptSums, source: NeuronSource, shards: Sequence[Shard], reporter: Reporter) -> None:
        """Write the sums of shards again that are no longer in the file as they were written."""
        rows = {shard.index: self.signs.groups(len(shard.rows) * self.tokens.context) for shard in shards}
        lost = [shard for shard in shards if not kept.is_kept(shard.index, rows[shard.index])]
        if lost:
            reporter.note(f"the sums of {len(lost)} of {len(shards)} shards are damaged: they are made again")
            again = Pass([source], [lambda device: kept], signs=self.signs)
            self._read(again, lost, "damaged sums", reporter)

    def _heldout_pass(self, source: NeuronSource) -> Pass:
        kept = KeptSums(self.model.name, self.file, "heldout", self.heldout_starts)
        return Pass([source], [lambda device: kept], signs=self.signs)

    def _n(self, shard: Shard) -> np.ndarray:
        """The sums of the signs alone of a shard's counted positions."""
        group, sign = self.signs.of(shard.index, len(shard.rows) * self.tokens.context)
        counted = self.tokens.mask(shard.rows).ravel()
        return np.bincount(group[counted], sign[counted], self.signs.groups(len(group)))

    def _read(
        self,
        run: Pass,
        shards: Sequence[Shard],
        label: str,
        reporter: Reporter,
        after_shard: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        positions = [len(shard.rows) * self.tokens.context for shard in shards]
        with reporter.tokens(label, sum(positions), sum(positions[: run.next_shard])) as meter:
            run.run(
                self.tokens,
                shards,
                batch_tokens=self.config.batch_tokens,
                after_batch=meter,
                after_shard=after_shard,
            )
