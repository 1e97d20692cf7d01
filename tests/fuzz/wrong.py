"""What a target of the fuzzer is, and targets whose readers are wrong: it starts without torch."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from universal_neurons.errors import InputError


@dataclass(frozen=True)
class Target:
    """One file of one format: `read` is called with its path after it was mutated."""

    name: str
    file: Path
    read: Callable[[Path], Any]
    structured: bool = False  # whether it is JSON, whose values are mutated too
    hashed: bool = False
    share: int = 1  # of the mutations


def wrong_targets(folder: Path) -> list[Target]:
    """Readers that fail in every way that is looked for, to try the fuzzer on."""
    (folder / "f").write_bytes(b"whole")
    held = []

    def once_whole(do: Callable[[], Any]) -> Callable[[Path], str]:
        return lambda path: "whole" if path.read_bytes() == b"whole" else do()

    class Talkative(InputError):
        def __str__(self) -> str:
            return "much " * 10_000

    def refuse() -> None:
        raise Talkative("")

    ways = {
        "foreign exception": lambda: 1 // 0,
        "difference": lambda: "other",
        "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "swell": lambda: held.append(np.ones(100 << 20)) or "whole",
        "long message": refuse,
        "hang": lambda: time.sleep(3600),
    }
    return [Target(name, folder / "f", once_whole(do), hashed=True) for name, do in ways.items()]
