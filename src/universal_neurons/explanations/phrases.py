"""Every built-in label in a few plain words, by hand: `is_lt_31` is “numbers up to 31”.

A phrase is a noun, so that it can be said that a unit fires on it, fires after it, raises it or lowers it.  What comes
from a text (strings, topics, subsets, your own labels' names) stands in quotes, made legible and cut.
"""

import re

from universal_neurons.labels import PREFIXES, SUFFIXES
from universal_neurons.legible import legible, shortened

LONGEST = 40  # characters of what is quoted

SYMBOLS = {
    "period": "a full stop", "comma": "a comma", "exclamation": "an exclamation mark", "question": "a question mark",
    "semicolon": "a semicolon", "colon": "a colon", "dash": "a hyphen", "slash": "a slash", "backslash": "a backslash",
    "underscore": "an underscore", "carrot": "a caret", "apostrophe": "a straight apostrophe",
    "quotation": "a straight quotation mark", "open_paren": "an opening parenthesis",
    "close_paren": "a closing parenthesis", "open_bracket": "an opening square bracket",
    "close_bracket": "a closing square bracket", "open_brace": "an opening brace", "close_brace": "a closing brace",
    "closing_punc": "a closing bracket", "opening_punc": "an opening bracket",
    "math_symbol": "a sign of arithmetic (+ - * / = < >)", "currency": "a currency sign", "dollar": "a dollar sign",
    "double_dollar": "a double dollar sign", "digit": "a digit",
    "any_dash": "a hyphen or dash", "any_apostrophe": "an apostrophe, straight or curly",
    "any_quotation": "a quotation mark, straight or curly", "any_math_symbol": "a sign of mathematics",
    "any_currency": "a currency sign of any country",
}  # fmt: skip
PRONOUNS = {
    "male": "forms of he", "female": "forms of she", "neutral": "forms of they",
    "first_person": "pronouns of the first person", "second_person": "forms of you",
    "third_person": "pronouns of the third person, without it", "plural": "plural pronouns",
    "singular": "singular pronouns", "subject": "subject pronouns (I, we, he)",
    "object": "object pronouns (me, us, him)", "possessive": "possessive pronouns (my, your, theirs)",
    "reflexive": "reflexive pronouns (myself, itself)", "personal": "pronouns that name persons",
    "indefinite": "indefinite pronouns (anyone, few, all)",
    "demonstrative": "this, that, these and those", "interrogative": "question words (who, which, what)",
    "relative": "relative pronouns (who, which, that)", "intensive": "pronouns in -self",
    "nonreflexive": "plain personal pronouns (I, me, she, it)",
}  # fmt: skip
TOKENS = {
    "all_white_space": "white space",
    "all_caps": "words in capitals",
    "all_lower": "words in small letters",
    "all_alpha": "tokens of letters alone",
    "all_numeric": "numbers in digits",
    "all_symbolic": "tokens of signs alone",
    "all_digits": "tokens of digits alone, raised ones too",
    "is_number_word": "number words (two, twenty)",
    "is_year": "years from 1491 to 2199",
    "is_one_digit": "numbers of one digit",
    "is_two_digit": "numbers of two digits",
    "is_three_digit": "numbers of three digits",
    "is_four_digit": "numbers of four digits",
    "is_lt_31": "numbers up to 31",
    "starts_w_vowel": "words that begin with a vowel",
    "starts_w_consonant": "words that begin with a consonant",
    "start_w_no_space": "tokens with no space before them",
    "start_w_no_space_and_letter": "tokens that begin with a letter and no space",
    "start_w_no_space_and_digit": "tokens that begin with a digit and no space",
    "starts_w_no_space_and_cap": "tokens that begin with a capital and no space",
    "starts_w_no_space_and_lower": "tokens that begin with a small letter and no space",
    "starts_w_digit": "tokens that are a number in digits",
    "starts_w_space": "tokens that begin with a space",
    "start_w_space_and_letter": "tokens that begin with a space and a letter",
    "starts_w_cap": "words that begin with a capital",
    "is_month": "months",
    "is_day_of_week": "days of the week",
    "is_state": "names of US states",
    "is_state_abv": "abbreviations of US states",
    "is_length": "units of length",
    "is_time": "units of time",
    "is_contrastive_conjuction": "words of contrast (but, however)",
    "is_website_suffix": "endings of web addresses (com, org)",
    "is_any_number_word": "number words and ordinals (two, third)",
    "is_any_third_person_pronoun": "pronouns of the third person",
    "is_any_length": "units of length, short forms too",
    "is_any_time": "units of time, decades and centuries too",
    "is_any_website_suffix": "endings of web addresses, more of them (de, info)",
    "small_norm": "tokens with an unusually short embedding",
    "start_w_consonant": "tokens that begin with a consonant",
    "start_w_digit": "tokens that begin with a digit",
    "start_w_space": "tokens that begin with a space, white space too",
    "is_contrastive_conjunction": "words of contrast (but, while)",
    **{f"contains_{name}": f"tokens with {sign}" for name, sign in SYMBOLS.items()},
    **{f"is_{name}_pronoun": said for name, said in PRONOUNS.items()},
    **{f"end_w_{suffix}": f"words that end in -{suffix}" for suffix in SUFFIXES.split()},
    **{
        f"start_w_{prefix}": f"words that begin with {prefix}-" if prefix[1:] else f"words that begin with “{prefix}”"
        for prefix in PREFIXES.split()
    },
}
SIGNS = {
    ".": "the full stop", ",": "the comma", "!": "the exclamation mark", "?": "the question mark",
    ";": "the semicolon", ":": "the colon", "-": "the hyphen", "/": "the slash", "\\": "the backslash",
    "_": "the underscore", "^": "the caret", "'": "the apostrophe", '"': "the quotation mark",
    "(": "the opening parenthesis", ")": "the closing parenthesis", "[": "the opening square bracket",
    "]": "the closing square bracket", "{": "the opening brace", "}": "the closing brace", "$": "the dollar sign",
    "=": "the equals sign", "+": "the plus sign", "*": "the asterisk", "%": "the percent sign", "&": "the ampersand",
    "#": "the hash sign", "@": "the at sign", "|": "the vertical bar", "~": "the tilde", "`": "the backtick",
    "<": "the less-than sign", ">": "the greater-than sign", "–": "the dash", "—": "the long dash",
}  # fmt: skip
PLACES_IN_A_WORD = {
    "word": "as a whole word",
    "word start": "where a longer word begins",
    "inside word": "inside words",
}
SYNTAX = {
    "is_stop": "common function words", "sentence_start": "the first word of a sentence",
    "sentence_end": "the last word of a sentence",
    "pos_ADJ": "adjectives", "pos_ADP": "prepositions", "pos_ADV": "adverbs", "pos_AUX": "auxiliary verbs",
    "pos_CCONJ": "coordinating conjunctions", "pos_DET": "articles and other determiners", "pos_INTJ": "interjections",
    "pos_NOUN": "nouns", "pos_NUM": "numerals", "pos_PART": "particles (to, not, 's)", "pos_PRON": "pronouns",
    "pos_PROPN": "proper nouns", "pos_PUNCT": "punctuation", "pos_SCONJ": "subordinating conjunctions",
    "pos_SYM": "symbols", "pos_VERB": "verbs", "pos_X": "words of no word class", "pos_SPACE": "white space",
    "pos_MULTI": "tokens that lie in several words",
    "dep_ROOT": "the main verb of a sentence", "dep_acl": "clauses that modify a noun",
    "dep_acomp": "adjectives after a verb", "dep_advcl": "adverbial clauses", "dep_advmod": "adverbs that modify",
    "dep_agent": "the by of a passive", "dep_amod": "adjectives before their noun", "dep_appos": "appositions",
    "dep_attr": "what a subject is said to be", "dep_aux": "auxiliaries", "dep_auxpass": "auxiliaries of a passive",
    "dep_case": "case markers", "dep_cc": "conjunctions between parts", "dep_ccomp": "clauses as an object",
    "dep_compound": "first parts of compounds", "dep_conj": "parts joined by a conjunction",
    "dep_csubj": "clauses as a subject", "dep_csubjpass": "clauses as the subject of a passive",
    "dep_dative": "indirect objects", "dep_dep": "words of an unclear relation", "dep_det": "determiners of a noun",
    "dep_dobj": "direct objects", "dep_expl": "the there and it that stand for nothing",
    "dep_intj": "interjections", "dep_mark": "words that introduce a clause", "dep_meta": "marks of layout",
    "dep_neg": "negations", "dep_nmod": "nouns that modify a noun", "dep_npadvmod": "nouns used as adverbs",
    "dep_nsubj": "subjects", "dep_nsubjpass": "subjects of a passive", "dep_nummod": "numbers before their noun",
    "dep_oprd": "complements of an object", "dep_parataxis": "clauses set side by side",
    "dep_pcomp": "clauses after a preposition", "dep_pobj": "objects of a preposition",
    "dep_poss": "possessors", "dep_preconj": "the first half of a paired conjunction (both, either)",
    "dep_predet": "words before a determiner (all, such)", "dep_prep": "prepositions that modify",
    "dep_prt": "particles of a verb (up, out)", "dep_punct": "punctuation within a sentence",
    "dep_quantmod": "words that modify a number", "dep_relcl": "verbs of a relative clause",
    "dep_xcomp": "open complements of a verb",
    "ent_CARDINAL": "numbers that count", "ent_DATE": "dates", "ent_EVENT": "names of events",
    "ent_FAC": "names of buildings and roads", "ent_GPE": "countries, states and cities",
    "ent_LANGUAGE": "names of languages", "ent_LAW": "names of laws", "ent_LOC": "names of regions and waters",
    "ent_MONEY": "sums of money", "ent_NORP": "nationalities, religions and parties", "ent_ORDINAL": "ordinals",
    "ent_ORG": "names of organisations", "ent_PERCENT": "percentages", "ent_PERSON": "names of people",
    "ent_PRODUCT": "names of products", "ent_QUANTITY": "measurements", "ent_TIME": "times of day",
    "ent_WORK_OF_ART": "titles of works",
    "Number=Plur": "plurals", "Number=Sing": "singular words", "Person=1": "words of the first person",
    "Person=2": "words of the second person", "Person=3": "words of the third person",
    "PronType=Art": "articles", "PronType=Dem": "demonstratives", "PronType=Ind": "indefinite words",
    "PronType=Int": "interrogative words", "PronType=Neg": "negative pronouns", "PronType=Prs": "personal pronouns",
    "PronType=Rel": "relative words", "PronType=Tot": "words for all (all, every)", "PronType=Rcp": "each other",
    "Tense=Past": "past tenses", "Tense=Pres": "present tenses", "Tense=Fut": "future tenses",
    "VerbForm=Fin": "finite verbs", "VerbForm=Ger": "gerunds", "VerbForm=Inf": "infinitives",
    "VerbForm=Part": "participles", "Aspect=Perf": "perfect forms", "Aspect=Prog": "progressive forms",
}  # fmt: skip
PATTERNS = {  # of syntax, for what a pipeline of another language or version names
    "pos_": "words of the class {}",
    "dep_": "words that are {} to their head",
    "ent_": "named entities of the kind {}",
}
WHOLE_POSITION = "position"
IN_THE_ROW = re.compile(r"position (?:(?P<below>< )(?P<end>\d+)|(?P<low>\d+)(?:–(?P<high>\d+))?)")


def quoted(text: str) -> str:
    """Text from outside as a sentence can hold it: legible, cut, in quotes."""
    return f"“{shortened(legible(text), LONGEST)}”"


def phrase_of(label: str, group: str) -> str:
    """What a label holds of, as a noun: any label of any group but `position`."""
    if group == "tokens":
        return TOKENS.get(label) or f"tokens that pass the test {quoted(label)}"
    if group == "unigrams":
        return _unigram(label)
    if group == "syntax":
        return SYNTAX.get(label) or _of_pattern(label)
    if group == "subsets":
        return f"text of the subset {quoted(label)}"
    if group == "topics":
        return f"words of the topic {quoted(label.removeprefix('topic '))}"
    return f"tokens labelled {quoted(label)}"


def place_of(label: str, group: str, previous: bool = False) -> str:
    """Where a label holds, as the end of `Fires …`: on it, after it, in it, at positions 4 to 7."""
    if group == "position":
        return _position(label)
    preposition = "after" if previous else "in" if group == "subsets" else "on"
    return f"{preposition} {phrase_of(label, group)}"


def _unigram(label: str) -> str:
    string, place = label, ""
    for name, said in PLACES_IN_A_WORD.items():
        if label.endswith(f" ({name})"):
            string, place = label.removesuffix(f" ({name})"), f" {said}"
    letter = "the letter " if len(string) == 1 and string.isalpha() and string.isascii() else ""
    return SIGNS.get(string, f"{letter}{quoted(string)}") + place


def _position(label: str) -> str:
    found = IN_THE_ROW.fullmatch(label)
    if found is None:
        return "at some positions in the text"
    if found["below"]:
        return f"before position {found['end']}"
    return f"at positions {found['low']} to {found['high']}" if found["high"] else f"at position {found['low']}"


def _of_pattern(label: str) -> str:
    for beginning, said in PATTERNS.items():
        if label.startswith(beginning):
            return said.format(quoted(label.removeprefix(beginning)))
    return f"words marked {quoted(label)}"
