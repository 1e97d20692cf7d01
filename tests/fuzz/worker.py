"""One process that mutates and reads: `python worker.py GROUP FOLDER MUTATIONS SEED FIRST`.

It prints a line of JSON before every mutation and one for every finding, so that whoever started it knows which
mutation it died or hung in.  Findings: a foreign exception, another answer where a hash is carried, memory.
"""

import contextlib
import io
import json
import os
import random
import resource
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.mutations import mutated
from fuzz.wrong import Target, wrong_targets

from universal_neurons.errors import UniversalNeuronsError

ADDRESS_SPACE = 12 << 30
GROWTH = 700 << 10  # KiB of resident memory that all mutations together may add
MESSAGE = 20_000  # characters of an error message


def targets_of(group: str, folder: Path) -> list[Target]:
    """The files of a group and their readers."""
    if group == "wrong":
        return wrong_targets(folder)
    from fuzz.targets import GROUPS

    return GROUPS[group](folder)


def plan(targets: list[Target], mutations: int) -> list[Target]:
    """The target of every mutation, by its number."""
    turns = [target for target in targets for _ in range(target.share)]
    return [turns[number % len(turns)] for number in range(mutations)]


def resident() -> int:
    """The most memory this process has held, in KiB (`ru_maxrss` would be its parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def tried(target: Target, whole: bytes, expected: str, draw: random.Random) -> str | None:
    """What was wrong with the answer to one mutation, or None."""
    content = mutated(whole, draw, structured=target.structured)
    target.file.write_bytes(content)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            answer = target.read(target.file)
    except UniversalNeuronsError as error:
        return f"a message of {len(str(error))} characters" if len(str(error)) > MESSAGE else None
    except BaseException as error:  # noqa: BLE001
        where = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        return f"{type(error).__module__}.{type(error).__name__}: {str(error)[:200]} at {' '.join(where[-6:])}"
    finally:
        target.file.write_bytes(whole)
    if target.hashed and content != whole and answer != expected:
        return "another answer, in silence"
    return None


def main(group: str, folder: str, mutations: int, seed: int, first: int) -> None:
    """Try the mutations from the `first` on."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that write to it themselves
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    targets = targets_of(group, Path(folder))
    whole = {target.name: target.file.read_bytes() for target in targets}
    expected = {target.name: target.read(target.file) for target in targets}
    at_first = resident()
    for number, target in enumerate(plan(targets, mutations)):
        if number < first:
            continue
        print(json.dumps({"at": number, "target": target.name}), file=report)
        draw = random.Random(f"{seed} {group} {number}")
        wrong = tried(target, whole[target.name], expected[target.name], draw)
        if wrong is None and resident() - at_first > GROWTH:
            wrong, at_first = f"{(resident() - at_first) >> 10} MiB more memory", resident()
        if wrong is not None:
            print(json.dumps({"finding": wrong, "number": number, "target": target.name}), file=report)
    print(json.dumps({"done": mutations}), file=report)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
