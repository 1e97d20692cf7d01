"""A suite's weights in a few small files, and back: python suite/pack.py RESULTS OUT [TOKENIZER]

`train.py … --pack RESULTS` writes: each file holds several seeds in float16, tensors named `seed-1/step-512/NAME` or
`seed-1/NAME`, with its step as metadata; results.json says what was trained, how long and how well.  Every file is
written as soon as it exists, those of the last weights anew at every save, so that a run that is cut off counts.
The command above makes ordinary Hugging Face folders of them again, OUT/models/seed-1/ and OUT/models/seed-1/step-512/.
`make.py` does too, by its recipe's names.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import batched
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MOST_FILES, MOST_BYTES = 5, 15 * 2**20
RESULTS = "results.json"
OF_WEIGHTS = ("rows", "warmup", "peak", "final", "weight_decay", "betas", "clip", "dtype")  # and how many steps


def whole_file(path: Path, write) -> None:
    """A file that is there only when it is finished."""
    unfinished = path.with_name(f".{path.name}.partial")
    write(unfinished)
    unfinished.chmod(0o644)
    os.replace(unfinished, path)


class Pack:
    """The files of a run under way; `names` are its seeds, `bytes_a_seed` what one takes in float16."""

    def __init__(self, folder: Path, names: list[str], bytes_a_seed: int) -> None:
        self.folder = folder
        self.names = names
        self.at_once = (MOST_BYTES - 2**17) // bytes_a_seed
        if self.at_once < 1:
            raise SystemExit(f"{folder}: a seed of {bytes_a_seed / 2**20:.1f} MiB does not fit a file")
        folder.mkdir(parents=True, exist_ok=True)

    def _groups(self, names: list[str]) -> list[list[str]]:
        return [names[start : start + self.at_once] for start in range(0, len(names), self.at_once)]

    def check(self, checkpoints: int, checkpoint_seeds: list[str]) -> None:
        """Refuse, before anything is trained, what would take too many files."""
        files = len(self._groups(self.names)) + checkpoints * len(self._groups(checkpoint_seeds))
        if files > MOST_FILES:
            raise SystemExit(f"{self.folder}: {files} files of weights, more than {MOST_FILES}; keep fewer checkpoints")

    def write(self, step: int, weights: dict[str, dict[str, Tensor]], checkpoint: bool = False) -> None:
        """Weights of some seeds after a step: as a checkpoint, or as the last there are."""
        inside = f"step-{step}/" if checkpoint else ""
        for number, names in enumerate(self._groups(list(weights))):
            tensors = {
                f"{name}/{inside}transformer.{key}": tensor.half().contiguous()
                for name in names
                for key, tensor in weights[name].items()
            }
            path = self.folder / f"{f'step-{step}' if checkpoint else 'last'}-{number}.safetensors"
            whole_file(path, lambda to, held=tensors: save_file(held, to, metadata={"step": str(step)}))

    def tell(self, results: dict) -> None:
        """Write what is known of the run."""
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        whole_file(self.folder / RESULTS, lambda to: to.write_text(text))


def seeds_of(recipe: dict) -> dict[str, str]:
    """The names of a recipe's seeds by all that decides what becomes of each."""
    decided = [seed | {"name": "", "model": recipe["model"] | seed.get("model", {})} for seed in recipe["seeds"]]
    return {json.dumps(of, sort_keys=True): seed["name"] for of, seed in zip(decided, recipe["seeds"])}


def names_in(recipe: dict, packed: dict) -> dict[str, str]:
    """What a recipe calls the seeds of a pack, by their names there; raises SystemExit where it is another recipe's."""
    ours, theirs = seeds_of(recipe), seeds_of(packed)
    other = [name for name in OF_WEIGHTS if recipe["training"].get(name) != packed["training"].get(name)]
    if other or ours.keys() != theirs.keys():
        raise SystemExit(f"the pack is of another recipe: {', '.join(other) or 'its seeds or their model'}")
    return {theirs[key]: name for key, name in ours.items()}


def unpack(results: Path, out: Path, tokenizer: Path | None = None, recipe: dict | None = None) -> dict:
    """Ordinary folders of everything in a pack, with the files of a tokenizer if one is named; returns the results.

    Folders are named as in a recipe that is given, else as in the pack.
    """
    packed = json.loads((results / RESULTS).read_text())
    named = names_in(recipe or packed["recipe"], packed["recipe"])
    of_pack = packed["recipe"]
    model_of = {seed["name"]: of_pack["model"] | seed.get("model", {}) for seed in of_pack["seeds"]}
    for file in sorted(results.glob("*.safetensors")):
        folders: dict[str, dict[str, Tensor]] = defaultdict(dict)
        with safe_open(file, "pt") as held:
            step = int(held.metadata()["step"])
            for key in held.keys():  # noqa: SIM118 - no dictionary
                folder, _, name = key.rpartition("/")
                folders[folder][name.removeprefix("transformer.")] = held.get_tensor(key).float()[None]
        for folder, weights in folders.items():
            seed, *checkpoint = folder.split("/")
            target = out.joinpath("models", named[seed], *checkpoint)
            write_model(target, batched.model_config(model_of[seed]), weights, 0, step)
            if tokenizer and not checkpoint:
                for part in tokenizer.iterdir():
                    (target / part.name).write_bytes(part.read_bytes())
    return packed


def write_model(folder: Path, config, weights: dict[str, Tensor], seed: int, step: int) -> None:
    """One seed as an ordinary Hugging Face folder."""
    batched.to_hugging_face(config, weights, seed).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
