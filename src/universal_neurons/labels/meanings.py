"""What every built-in label means, in a sentence: `uneurons labels`.

Labels that a text makes (unigrams, topics, subsets, positions) and those that a spaCy pipeline names stand as patterns:
`‹word›` for the part that changes.
"""

from dataclasses import dataclass

from universal_neurons.labels.token_tests import (
    AS_WRITTEN,
    PREFIXES,
    PRONOUNS,
    SUFFIXES,
    SYMBOLS,
    TOKEN_TESTS,
    WIDER_SYMBOLS,
    WIDER_TESTS,
    WIDER_WORDS,
    WORD_GROUPS,
    words_of,
)

SMALL_NORM = "its embedding is short: three deviations below the median norm"
LISTED = 6  # words of a list that a sentence names


@dataclass(frozen=True)
class Meaning:
    """A label, or a pattern of labels, its group, and when it holds."""

    label: str
    group: str
    holds: str


PLAIN = {
    "all_white_space": "nothing but white space",
    "all_caps": "two signs or more, no small letter among them and at least one capital",
    "all_lower": "no capital, and at least one small letter",
    "all_alpha": "letters alone",
    "all_numeric": "decimal digits alone, of any script",
    "all_symbolic": "neither letters nor digits, but signs",
    "contains_double_dollar": "holds $$",
    "contains_digit": "holds a digit",
    "all_digits": "digits alone, raised ones (²) too",
    "is_year": "a whole number from 1491 to 2199",
    "is_one_digit": "one decimal digit",
    "is_two_digit": "two decimal digits",
    "is_three_digit": "three decimal digits",
    "is_four_digit": "four decimal digits",
    "is_lt_31": "a whole number from 0 to 31",
    "starts_w_vowel": "a, e, i, o or u first, whatever space is before it",
    "starts_w_consonant": "letters alone, of which the first is none of a, e, i, o, u",
    "start_w_no_space": "no space before it: a word goes on, or the text begins with it",
    "start_w_no_space_and_letter": "a letter first, with no space before it",
    "start_w_no_space_and_digit": "a digit first, with no space before it",
    "starts_w_no_space_and_cap": "a capital first, with no space before it",
    "starts_w_no_space_and_lower": "a small letter first, with no space before it",
    "starts_w_digit": "decimal digits alone, as all_numeric",
    "starts_w_space": "a space before it, and not white space alone: a word begins",
    "start_w_space_and_letter": "a space, then a letter",
    "starts_w_cap": "a capital first, whatever space is before it",
    "is_website_suffix": "the token, without a space, is com, net, org, edu, gov, mil, int, io, co, uk, ca or ai",
}
FORMER = {  # what earlier versions called a token's label, or meant by it
    "start_w_consonant": "its first sign is a letter that is no vowel (a test of an earlier version)",
    "start_w_digit": "a digit first, whatever space is before it (a test of an earlier version)",
    "start_w_space": "a space before it, white space alone too (a test of an earlier version)",
    "is_contrastive_conjunction": "the word is but, however, although, while, … (a test of an earlier version)",
}
UPOS = {
    "ADJ": "an adjective", "ADP": "a preposition or postposition", "ADV": "an adverb", "AUX": "an auxiliary verb",
    "CCONJ": "a coordinating conjunction", "DET": "a determiner", "INTJ": "an interjection", "NOUN": "a noun",
    "NUM": "a number", "PART": "a particle", "PRON": "a pronoun", "PROPN": "a proper noun", "PUNCT": "punctuation",
    "SCONJ": "a subordinating conjunction", "SYM": "a symbol", "VERB": "a verb", "X": "a word of no other class",
    "SPACE": "white space", "MULTI": "a token that lies in several words",
}  # fmt: skip
OF_TEXT = {
    "unigrams": {
        "‹string›": "the token is this string, in any case and with or without a space",
        "‹string› (word)": "the same, as a whole word",
        "‹string› (word start)": "the same, where a longer word begins",
        "‹string› (inside word)": "the same, within a word",
    },
    "syntax": {
        **{f"pos_{name}": f"the word is {meaning}" for name, meaning in UPOS.items()},
        "dep_‹relation›": "the word has this relation to its head (of the pipeline's parser: nsubj, dobj, …)",
        "ent_‹kind›": "the word is part of a named entity of this kind (PERSON, GPE, DATE, …)",
        "‹Feature›=‹Value›": "the word's morphology: Number, Person, PronType, Tense, VerbForm or Aspect",
        "is_stop": "the word is one of the pipeline's stop words",
        "sentence_start": "the word is the first of its sentence",
        "sentence_end": "the word is the last of its sentence",
    },
    "subsets": {"‹subset›": "the text is of this subset of the corpus"},
    "position": {
        "position ‹n›": "the position in the row is n; BOS is at 0",
        "position ‹n›–‹m›": "the position in the row lies from n to m",
        "position < ‹n›": "the position in the row lies from 1 to below n",
        "position": "position as a whole: its mean at every position against the rest (η², adjusted)",
    },
    "topics": {"topic ‹words›": "the token is one of a topic's words; the topic is named by its first ones"},
    "own": {"‹your name›": "what your function, set or span says (docs/labels.md)"},
}


def _of_token_tests() -> dict[str, str]:
    """What each test of a token's string looks for."""
    told = dict(PLAIN)
    told |= {f"contains_{name}": _holding(signs) for name, signs in SYMBOLS.items()}
    told |= {f"end_w_{suffix}": f"ends with {suffix}" for suffix in SUFFIXES.split()}
    told |= {f"start_w_{prefix}": f"begins with {prefix}" for prefix in PREFIXES.split()}
    told |= {f"is_{name}_pronoun": _one_of(words) for name, words in PRONOUNS.items()}
    told |= {f"is_{name}": _one_of(words) for name, words in WORD_GROUPS.items()}
    told |= {f"is_{name}": f"{_one_of(words)}, so written" for name, words in AS_WRITTEN.items()}
    told |= {f"contains_any_{name}": _holding(signs) for name, signs in WIDER_SYMBOLS.items()}
    told |= {f"is_any_{name}": _one_of(words) for name, words in WIDER_WORDS.items()}
    return {name: told[name] for name in TOKEN_TESTS | WIDER_TESTS} | {"small_norm": SMALL_NORM}


def _holding(signs: str) -> str:
    return f"holds {signs}" if len(signs) == 1 else f"holds one of {' '.join(signs)}"


def _one_of(listed: str) -> str:
    words = words_of(listed)
    return f"the word is one of {', '.join(words[:LISTED])}" + (", …" if len(words) > LISTED else "")


def built_in_labels() -> list[Meaning]:
    """Every built-in label with its group, in the order of the groups; patterns for those that a text makes."""
    groups = {"tokens": _of_token_tests(), **OF_TEXT}
    return [Meaning(label, group, holds) for group, labels in groups.items() for label, holds in labels.items()]


def meaning_of(label: str, group: str) -> str:
    """When a label of a study holds: that of its name, else of the pattern that it is one of."""
    known = _of_token_tests() | FORMER if group == "tokens" else OF_TEXT.get(group, {})
    return known[label] if label in known else _of_pattern(label, group)


def _of_pattern(label: str, group: str) -> str:
    if group == "unigrams":
        place = next((p for p in ("(word)", "(word start)", "(inside word)") if label.endswith(f" {p}")), "")
        return OF_TEXT[group][f"‹string› {place}".strip()]
    if group == "syntax":
        pattern = {"dep": "dep_‹relation›", "ent": "ent_‹kind›"}.get(label.split("_", 1)[0], "‹Feature›=‹Value›")
        return OF_TEXT[group][pattern]
    if group == "position":
        return f"the {label}".replace("the position <", "the position lies from 1 to below")
    patterns = OF_TEXT.get(group, {})
    return next(iter(patterns.values()), "")
