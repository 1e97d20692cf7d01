"""Topics of a corpus: words that occur in the same rows, from a topic model of the corpus itself.

Rows × normalised words, weighted by tf-idf, factorised by non-negative matrices (scikit-learn); a topic's words are
those it has most of, and most to itself.
"""

import warnings

import numpy as np
from scipy import sparse

from universal_neurons.text import Rows, Vocabulary

MOST_ROWS = 20_000
FEWEST_ROWS = 5  # a word in fewer rows, or in more than half of them, says nothing about topics
SHORTEST = 3
WORDS = 30
NAMED = 3


def find_topics(tokens: Rows, vocabulary: Vocabulary, n_topics: int, seed: int = 0) -> dict[str, list[int]]:
    """Token ids of each topic, named by its first words; fewer topics, or none, where the text has no more."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfTransformer

    words = sorted({s for s in vocabulary.normalised if len(s) >= SHORTEST and s.isalpha()})
    number = {word: n for n, word in enumerate(words)}
    word_of = np.array([number.get(s, -1) for s in vocabulary.normalised])
    rows = np.unique(np.linspace(0, len(tokens) - 1, min(len(tokens), MOST_ROWS)).astype(int))
    table = _count(tokens, rows, word_of, len(words))
    spread = np.asarray((table > 0).sum(0)).ravel()
    used = np.flatnonzero((spread >= FEWEST_ROWS) & (spread <= len(rows) / 2))
    n_topics = min(n_topics, len(used) // WORDS, len(rows) // FEWEST_ROWS)
    if n_topics < 2:
        return {}
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(table[:, used])
    model = NMF(n_topics, init="nndsvda", random_state=seed % 2**32, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(weighted)
    weights = model.components_
    shares = weights / np.maximum(weights.sum(0), 1e-12)
    topics: dict[str, list[int]] = {}
    for topic in range(n_topics):
        ranked = np.argsort(-weights[topic] * shares[topic], kind="stable")[:WORDS]
        best = [w for w in ranked.tolist() if shares[topic, w] > 0.5]
        if len(best) < NAMED:
            continue
        members = np.isin(word_of, used[best])
        name = "topic " + " ".join(words[used[w]] for w in best[:NAMED])
        topics[name] = np.flatnonzero(members).tolist()
    return topics


def _count(tokens: Rows, rows: np.ndarray, word_of: np.ndarray, n_words: int) -> sparse.csr_matrix:
    words = word_of[tokens.ids(rows)]
    kept = (words >= 0) & tokens.mask(rows)
    row, _ = np.nonzero(kept)
    ones = np.ones(len(row), np.float32)
    return sparse.csr_matrix((ones, (row, words[kept])), shape=(len(rows), n_words))
