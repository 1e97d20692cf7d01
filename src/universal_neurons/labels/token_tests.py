"""The paper's 207 tests on a token's string, under the authors' names (paper §4.3, their `vocab_df`).

A string is the token as it stands in text, with its leading space.  Tests of words look at the string without the
space around it; whatever looks at characters needs at least one, so that no test holds for the empty string.
"""

import re
from collections.abc import Callable

TokenTest = Callable[[str], bool]

VOWELS = "aeiou"
SYMBOLS = {
    "period": ".", "comma": ",", "exclamation": "!", "question": "?", "semicolon": ";", "colon": ":", "dash": "-–—",
    "slash": "/", "backslash": "\\", "underscore": "_", "caret": "^", "apostrophe": "'’", "quotation": '"“”',
    "open_paren": "(", "close_paren": ")", "open_bracket": "[", "close_bracket": "]", "open_brace": "{",
    "close_brace": "}", "closing_punc": ")]}>»”", "opening_punc": "([{<«“", "math_symbol": "+−=<>×÷±*/^%",
    "currency": "$€£¥¢₹", "dollar": "$",
}  # fmt: skip
NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
trillion first second third fourth fifth sixth seventh eighth ninth tenth"""
PRONOUNS = {
    "male": "he him his himself",
    "female": "she her hers herself",
    "neutral": "it its itself they them their theirs themselves themself",
    "first_person": "i me my mine myself we us our ours ourselves",
    "second_person": "you your yours yourself yourselves thou thee thy thine",
    "third_person": "he him his himself she her hers herself it its itself they them their theirs themselves themself",
    "plural": "we us our ours ourselves they them their theirs themselves yourselves these those",
    "singular": "i me my mine myself he him his himself she her hers herself it its itself yourself this that",
    "subject": "i you he she it we they who",
    "object": "me you him her it us them whom",
    "possessive": "my mine your yours his her hers its our ours their theirs whose",
    "reflexive": "myself yourself himself herself itself ourselves yourselves themselves themself oneself",
    "personal": "i me you he him she her it we us they them",
    "indefinite": """all another any anybody anyone anything both each either everybody everyone everything few many
    most neither nobody none nothing one other others several some somebody someone something such""",
    "demonstrative": "this that these those",
    "interrogative": "who whom whose which what whoever whomever whichever whatever",
    "relative": "who whom whose which that whoever whomever whichever whatever",
    "intensive": "myself yourself himself herself itself ourselves yourselves themselves",
    "nonreflexive": """i me my mine you your yours he him his she her hers it its we us our ours they them their
    theirs""",
}
SUFFIXES = """ness ment tion sion ance ence er or ist ism hood ship age able ible al ial ish ive less ful ous ic ly
ward wise ize ise en ify let ling ie ette dom logy graphy phobia y cy ty ant ent ary ery ing ed s est"""
PREFIXES = """a b c d e f g h i j k l m n o p q r s t u v w x y z un re in im dis en em non over mis sub pre inter
fore de trans super semi anti mid under mono bi tri multi poly ex micro macro auto tele homo hetero post geo aero hydro
thermo electro photo pan mega kilo pseudo neo counter ultra infra circum peri hemi ped pod bio"""
WORD_GROUPS = {
    "month": """january february march april may june july august september october november december jan feb mar apr
    jun jul aug sep sept oct nov dec""",
    "day_of_week": """monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sat
    sun""",
    "state": """alabama alaska arizona arkansas california colorado connecticut delaware florida georgia hawaii idaho
    illinois indiana iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota mississippi
    missouri montana nebraska nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont virginia
    washington wisconsin wyoming""",
    "website_suffix": "com org net edu gov mil io co uk de ru info biz tv html htm php",
    "length": """inch inches foot feet yard yards mile miles meter meters metre metres centimeter centimeters
    millimeter millimeters kilometer kilometers mm cm km ft""",
    "time": """second seconds minute minutes hour hours day days week weeks month months year years decade decades
    century centuries""",
    "contrastive_conjunction": "but however although though yet whereas while nevertheless nonetheless still unless",
}
STATE_ABBREVIATIONS = """AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM
NY NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY"""


def _among(words: str) -> TokenTest:
    members = frozenset(words.split())
    return lambda s: s.strip().lower() in members


def _contains(characters: str) -> TokenTest:
    return lambda s: any(c in characters for c in s)


def _ends(suffix: str) -> TokenTest:
    return lambda s: s.strip().lower().endswith(suffix)


def _starts(prefix: str) -> TokenTest:
    return lambda s: s.strip().lower().startswith(prefix)


def _digits(count: int) -> TokenTest:
    pattern = re.compile(rf"[0-9]{{{count}}}")
    return lambda s: pattern.fullmatch(s.strip()) is not None


def _integer(low: int, high: int) -> TokenTest:
    """Integers from `low` to below `high`."""
    return lambda s: re.fullmatch(r"[0-9]{1,9}", s.strip()) is not None and low <= int(s) < high


def _first(holds: TokenTest) -> TokenTest:
    """Of the first character that is not white space."""
    return lambda s: bool(s.strip()) and holds(s.strip()[0])


def _bare(holds: TokenTest) -> TokenTest:
    """Of the first character, where no space comes before it."""
    return lambda s: bool(s) and not s[0].isspace() and holds(s[0])


def _tests() -> dict[str, TokenTest]:
    tests: dict[str, TokenTest] = {
        "all_white_space": str.isspace,
        "all_caps": lambda s: s.strip().isalpha() and s.strip().isupper() and len(s.strip()) > 1,
        "all_lower": lambda s: s.strip().isalpha() and s.strip().islower(),
        "all_alpha": lambda s: s.strip().isalpha(),
        "all_numeric": lambda s: s.strip().isnumeric(),
        "all_symbolic": lambda s: bool(s.strip()) and not any(c.isalnum() or c.isspace() for c in s.strip()),
    }
    tests |= {f"contains_{name}": _contains(characters) for name, characters in SYMBOLS.items()}
    tests["contains_double_dollar"] = lambda s: "$$" in s
    tests |= {
        "contains_digit": lambda s: any(c.isdigit() for c in s),
        "all_digits": lambda s: s.strip().isdigit(),
        "is_number_word": _among(NUMBER_WORDS),
        "is_year": _integer(1491, 2200),
        "is_one_digit": _digits(1),
        "is_two_digit": _digits(2),
        "is_three_digit": _digits(3),
        "is_four_digit": _digits(4),
        "is_lt_31": _integer(0, 31),
    }
    tests |= {f"is_{name}_pronoun": _among(words) for name, words in PRONOUNS.items()}
    tests |= {
        "start_w_vowel": _first(lambda c: c.lower() in VOWELS),
        "start_w_consonant": _first(lambda c: c.isalpha() and c.lower() not in VOWELS),
        "start_w_no_space": _bare(lambda c: True),
        "start_w_no_space_and_letter": _bare(str.isalpha),
        "start_w_no_space_and_digit": _bare(str.isdigit),
        "start_w_no_space_and_capital": _bare(str.isupper),
        "start_w_no_space_and_lower": _bare(str.islower),
        "start_w_digit": _first(str.isdigit),
        "start_w_space": lambda s: s.startswith(" "),
        "start_w_space_and_letter": lambda s: len(s) > 1 and s[0] == " " and s[1].isalpha(),
        "start_w_capital": _first(str.isupper),
    }
    tests |= {f"end_w_{suffix}": _ends(suffix) for suffix in SUFFIXES.split()}
    tests |= {f"start_w_{prefix}": _starts(prefix) for prefix in PREFIXES.split()}
    tests |= {f"is_{name}": _among(words) for name, words in WORD_GROUPS.items()}
    abbreviations = frozenset(STATE_ABBREVIATIONS.split())
    tests["is_state_abv"] = lambda s: s.strip() in abbreviations
    return tests


TOKEN_TESTS = _tests()
