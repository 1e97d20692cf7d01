"""How long a model on this machine takes to answer questions of scoring, and how much is read once for many.

python benchmarks/asking.py MODEL [QUESTIONS]
"""

import random
import sys
import time

import torch

from universal_neurons.explanations import Kind, Question, Templates, backend_of, local_model
from universal_neurons.explanations.prompts import prompt_of

WORDS = ["", "the", "of", "and", "to", "in", "19", "45", ",", ".", "cat", "house", "run", "water", "under", "green"]
SENTENCE = "Fires on numbers, mostly years."
WIDTH = 32  # tokens of a window


def main(named: str, count: int = 32) -> None:
    torch.set_num_threads(1)
    backend, chooser = backend_of(named, dtype="float32"), random.Random(0)
    windows = [tuple(" " + chooser.choice(WORDS) for _ in range(WIDTH)) for _ in range(count)]
    of_windows = [prompt_of(Question(Kind.DETECTION, SENTENCE, window), Templates()) for window in windows]
    of_tokens = [
        prompt_of(Question(Kind.SIMULATION, SENTENCE, window), Templates(), place)
        for window in windows[: max(count // WIDTH, 1)]
        for place in range(WIDTH)
    ]
    for kind, prompts in (("detection", of_windows), ("simulation", of_tokens)):
        for way, shared in (("beginnings read once", local_model.SHARED), ("all read", sys.maxsize)):
            local_model.SHARED, usual = shared, local_model.SHARED
            began = time.process_time()
            replies = [reply for _, reply in backend.replies(prompts)]
            seconds, local_model.SHARED = time.process_time() - began, usual
            tokens = sum(reply.read for reply in replies) / len(replies)
            print(f"{kind}, {way}: {seconds / len(replies):.2f} s of processor time a question of {tokens:.0f} tokens")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
