"""Any causal language model by `transformers` as a backend: probabilities of answers from its logits, greedy text.

A prompt is put in the model's chat template where it has one, else in plain words that end with "Answer:".  An answer's
probability is summed over its spellings (yes, Yes, " yes" …) that are one token; where none is, its shortest is taken
as a whole.  A spelling that begins another ("1" of "10") has the other's probability taken off.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from universal_neurons.errors import ArchitectureError, TokenizerError
from universal_neurons.explanations.backends import Prompt, Reply
from universal_neurons.models import (
    Model,
    all_special_ids,
    decode,
    encode,
    named_errors,
    quiet_transformers,
    special_ids,
    strings_of,
)

BATCH_TOKENS = 8192  # that are read at a time
SHARED = 32  # tokens that all rows of a batch must begin with to be read once
PLAIN = "{system}\n\n{user}\nAnswer:"
SPELLINGS = ("{}", " {}", "\n{}")
TOO_LONG = "longer than the model can read"

Ids = tuple[int, ...]


class LocalModel:
    """A loaded model as a backend.

    Raises `ArchitectureError` for a model that predicts no next token, `TokenizerError` for one without a tokenizer.
    """

    def __init__(self, model: Model) -> None:
        model.require_unembedding()
        if not model.hf.can_generate():
            raise ArchitectureError(
                f"{model.name}: it predicts no next token", given=model.architecture.name, wanted="a causal model"
            )
        if model.tokenizer is None:
            raise TokenizerError(f"{model.name}: no tokenizer", wanted="a model with its tokenizer")
        self.model = model
        self.tokenizer, self.name = model.tokenizer, model.name
        self.template = getattr(model.tokenizer, "chat_template", None)
        form = hashlib.sha256(str(self.template or PLAIN).encode()).hexdigest()
        self.identity = f"{model.name} ({model.digest}, {model.dtype}, {form[:16]})"
        options = signature(model.hf.forward).parameters
        self.keeps_few = "logits_to_keep" in options
        self.cached_as = "cache" if "cache" in options else "past_key_values"  # of earlier releases
        special = strings_of(self.tokenizer, all_special_ids(self.tokenizer))
        self.special = sorted({token for token in special if len(token) > 1}, key=len, reverse=True)
        ids = special_ids(self.tokenizer)
        self.first = None if self.template else ids["bos_token_id"]
        self.padding = ids["pad_token_id"] or ids["eos_token_id"] or 0

    def replies(self, prompts: Sequence[Prompt]) -> Generator[tuple[int, Reply], None, None]:
        """The reply to every prompt, those that begin alike at a time."""
        rows = [self.ids_of(prompt) for prompt in prompts]
        fitting: dict[tuple[Any, ...], list[int]] = {}
        for place, (prompt, row) in enumerate(zip(prompts, rows)):
            if len(row) + max(prompt.tokens, _longest(prompt.answers)) > self.model.context:
                yield place, Reply(missing=TOO_LONG, final=False)
            else:
                fitting.setdefault((prompt.answers, prompt.tokens), []).append(place)
        for (answers, tokens), places in fitting.items():
            for batch in _batches(places, rows):
                ids = [rows[place] for place in batch]
                yield from zip(batch, self._chosen(ids, answers) if answers else self._written(ids, tokens))

    def ids_of(self, prompt: Prompt) -> Ids:
        """A prompt's tokens; what spells a special token in it is broken up, and stays text."""
        system, user = self._broken(prompt.system), self._broken(prompt.user)
        text = self._in_template(system, user) if self.template else PLAIN.format(system=system, user=user)
        ids = tuple(encode(self.tokenizer, [text])[0])
        return ids if self.first is None else (self.first, *ids)

    def _broken(self, text: str) -> str:
        for token in self.special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _in_template(self, system: str, user: str) -> str:
        """The chat template's text; one that knows no instructions has them before the question."""
        both = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        joined = [{"role": "user", "content": f"{system}\n\n{user}"}]
        with named_errors("its chat template cannot be used"):
            try:
                text = self._templated(both)
            except Exception:  # noqa: BLE001  whatever a template raises about a role
                return self._templated(joined)
            return text if system in text else self._templated(joined)

    def _templated(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _chosen(self, rows: list[Ids], answers: Sequence[str]) -> Iterator[Reply]:
        values = self.log_probabilities(rows, answers).tolist()
        for row, chosen in zip(rows, values):
            yield Reply(tuple(chosen), read=len(row))

    @torch.inference_mode()
    def log_probabilities(self, rows: Sequence[Ids], answers: Sequence[str]) -> Tensor:
        """Rows × answers: the natural logarithm of the probability that a row goes on with each answer."""
        spellings = self.spellings(answers)
        steps = self._next_tokens(rows, sorted(spellings))
        sizes = {ids: torch.stack([steps[ids[:k], ids[k]] for k in range(len(ids))]).sum(0).exp() for ids in spellings}
        summed = torch.zeros(len(rows), len(answers), dtype=torch.float64)
        for ids, answer in spellings.items():
            summed[:, answer] += sizes[ids]
            begins = next((ids[:k] for k in range(len(ids) - 1, 0, -1) if ids[:k] in sizes), None)
            if begins is not None:
                summed[:, spellings[begins]] -= sizes[ids]
        return summed.clamp_min(0).log()

    def spellings(self, answers: Sequence[str]) -> dict[Ids, int]:
        """The tokens that spell each answer, and its place: all single tokens, or where none is one the shortest."""
        found: dict[Ids, int] = {}
        for place, answer in enumerate(answers):
            cased = dict.fromkeys((answer, answer.capitalize(), answer.upper()))
            ways = {self._tokens(form.format(word)) for word in cased for form in SPELLINGS}
            single: list[Ids] = sorted(ids for ids in ways if len(ids) == 1)
            for ids in single or [min(ways, key=lambda ids: (len(ids), ids))]:
                found.setdefault(ids, place)
        return found

    def _tokens(self, spelled: str) -> Ids:
        """The tokens of a spelling; after a line's end, of what stands there."""
        if not spelled.startswith("\n"):
            return tuple(encode(self.tokenizer, [spelled])[0])
        before, whole = encode(self.tokenizer, ["a\n", f"a{spelled}"])
        return tuple(whole[len(before) :] if whole[: len(before)] == before else whole)

    def _next_tokens(self, rows: Sequence[Ids], spellings: list[Ids]) -> dict[tuple[Ids, int], Tensor]:
        """By what of a spelling was read before, and its next token: the log-probability of that token after each row.

        A pass reads the beginnings of a spelling and all that it begins with: what follows changes nothing before it.
        """
        begun = {ids[:-1] for ids in spellings}
        longest = [one for one in begun if not any(other[: len(one)] == one for other in begun - {one})]
        steps: dict[tuple[Ids, int], Tensor] = {}
        for beginning in longest:
            logits = self._last_logits([(*row, *beginning) for row in rows], len(beginning) + 1)
            for read in range(len(beginning) + 1):
                wanted = sorted({ids[read] for ids in spellings if ids[:read] == beginning[:read] and len(ids) > read})
                values = logits[:, read].double().log_softmax(-1)[:, wanted].cpu()
                steps |= {(beginning[:read], token): values[:, column] for column, token in enumerate(wanted)}
        return steps

    def _last_logits(self, rows: list[Ids], last: int) -> Tensor:
        """Rows × last × vocabulary: the logits at the last tokens of each row.

        Rows end with padding, which nothing before it sees.  What all begin with is read once.
        """
        shared, cache = self._shared(rows, last)
        ends = torch.tensor([len(row) - shared for row in rows])
        ids = torch.full((len(rows), int(ends.max())), self.padding)
        for place, row in enumerate(rows):
            ids[place, : len(row) - shared] = torch.tensor(row[shared:])
        first = int(ends.min()) - last  # of the columns whose logits are needed
        device = self.model.device
        settings: dict[str, Any] = {"logits_to_keep": ids.shape[1] - first} if self.keeps_few else {}
        settings |= {} if cache is None else {self.cached_as: cache}
        with self.model.evaluating():
            logits = self.model.hf(input_ids=ids.to(device), use_cache=cache is not None, **settings).logits
        logits = logits[:, -(ids.shape[1] - first) :]  # of a model that gives them all
        columns = (ends - first - last)[:, None] + torch.arange(last)
        return logits[torch.arange(len(rows))[:, None].to(logits.device), columns.to(logits.device)]

    def _shared(self, rows: list[Ids], last: int) -> tuple[int, Any]:
        """How many tokens all rows begin with, their `last` left out, and the model's cache of them for every row.

        0 and none where they are few, or where the model keeps something else than keys and values.
        """
        columns = zip(*(row[: min(map(len, rows)) - last] for row in rows))
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        if shared < SHARED or len(rows) == 1:
            return 0, None
        with self.model.evaluating():
            ids = torch.tensor([rows[0][:shared]], device=self.model.device)
            cache = self.model.hf.base_model(input_ids=ids, use_cache=True).get(self.cached_as)
        layers = getattr(cache, "layers", None)
        if not layers or not all(hasattr(layer, "keys") for layer in layers):
            return 0, None
        cache.batch_repeat_interleave(len(rows))
        return shared, cache

    @torch.inference_mode()
    def _written(self, rows: list[Ids], tokens: int) -> Iterator[Reply]:
        """Greedy text; of a model without a chat template the first line."""
        from transformers import GenerationConfig

        longest = max(map(len, rows))
        ids = torch.tensor([[self.padding] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        own = getattr(self.model.hf.generation_config, "eos_token_id", None)
        ends = own if own is not None else special_ids(self.tokenizer)["eos_token_id"]
        settings = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=self.padding,
            eos_token_id=ends,
            use_cache=True,
        )
        with self.model.evaluating(), quiet_transformers():
            whole = self.model.hf.generate(
                ids.to(self.model.device), attention_mask=mask.to(self.model.device), generation_config=settings
            )
        stops = {ends} if isinstance(ends, int) else set(ends or ())
        for row, written in zip(rows, whole[:, longest:].tolist()):
            kept = list(takewhile(lambda token: token not in stops, written))
            text = decode(self.tokenizer, [kept])[0]
            text = text if self.template else text.strip().partition("\n")[0]
            yield Reply(text=text.strip(), read=len(row), written=len(kept))


def _longest(answers: Sequence[str]) -> int:
    """Tokens of an answer, no fewer: none has more than its bytes."""
    return max((len(answer.encode()) + 1 for answer in answers), default=0)


def _batches(places: list[int], rows: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of rows that begin alike, as many at a time as have `BATCH_TOKENS` with their padding."""
    batch: list[int] = []
    longest = 0
    for place in sorted(places, key=rows.__getitem__):
        longest = max(longest, len(rows[place]))
        if batch and (len(batch) + 1) * longest > BATCH_TOKENS:
            yield batch
            batch, longest = [], len(rows[place])
        batch.append(place)
    if batch:
        yield batch
