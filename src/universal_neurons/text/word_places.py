"""Where in a word a token stands, by numbers; token and place as one number."""

import numpy as np
from jaxtyping import Int

NO_WORD, WORD, WORD_START, INSIDE_WORD = range(4)
KINDS = {WORD: "word", WORD_START: "word start", INSIDE_WORD: "inside word"}
N_KINDS = 4


def token_of(words: Int[np.ndarray, " words"]) -> Int[np.ndarray, " words"]:
    """The tokens of some words (`Vocabulary.words`)."""
    return words // N_KINDS


def kind_of(words: Int[np.ndarray, " words"]) -> Int[np.ndarray, " words"]:
    """Where in a word the tokens of some words stand."""
    return words % N_KINDS
