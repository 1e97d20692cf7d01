"""The paper's 207 tests on a token's string under the authors' names (§4.3, their `vocab_df`), and wider ones of ours.

A string is the token as it stands in text, with its leading space.  Tests of words look at the string without the
white space around it, most of them whatever its case; tests of symbols and of the first character look at it as it is.

Names and definitions are the authors', but for four that did not do what they say (`all_symbolic`, `all_digits`,
`is_length`, `is_time`: docs/labels.md).  `WIDER_TESTS` hold at more tokens than the paper's of the same name without
`any_`.
"""

from collections.abc import Callable

TokenTest = Callable[[str], bool]

VOWELS = ("a", "e", "i", "o", "u")
SYMBOLS = {
    "period": ".", "comma": ",", "exclamation": "!", "question": "?", "semicolon": ";", "colon": ":", "dash": "-",
    "slash": "/", "backslash": "\\", "underscore": "_", "carrot": "^", "apostrophe": "'", "quotation": '"',
    "open_paren": "(", "close_paren": ")", "open_bracket": "[", "close_bracket": "]", "open_brace": "{",
    "close_brace": "}", "closing_punc": ")]}>", "opening_punc": "([{<", "math_symbol": "+-*/=<>", "currency": "$€£¥",
    "dollar": "$",
}  # fmt: skip
NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
trillion quadrillion quintillion sextillion hundreds thousands millions billions trillions dozen dozens"""
LONGEST_NUMBER = 4000  # digits; Python reads no integer of more than 4300

MALE, FEMALE = "he him his himself", "she her hers herself"
THEY = "they them their theirs themself themselves"
FIRST_SINGULAR, FIRST_PLURAL = "i me my mine myself", "we us our ours ourselves"
YOU = "you your yours yourself yourselves"
REFLEXIVE = "myself ourselves yourself yourselves himself herself itself themselves"
PRONOUNS = {
    "male": MALE,
    "female": FEMALE,
    "neutral": THEY,
    "first_person": f"{FIRST_SINGULAR} {FIRST_PLURAL}",
    "second_person": YOU,
    "third_person": f"{MALE} {FEMALE} {THEY}",
    "plural": f"{FIRST_PLURAL} {THEY}",
    "singular": f"{FIRST_SINGULAR} {YOU} {MALE} {FEMALE}",
    "subject": "i we you he she it they",
    "object": "me us you him her it them",
    "possessive": "my mine our ours your yours his her hers its their theirs",
    "reflexive": REFLEXIVE,
    "personal": f"{FIRST_SINGULAR} {FIRST_PLURAL} {YOU} {MALE} {FEMALE} {THEY}",
    "indefinite": """anybody anyone anything each either everybody everyone everything neither nobody no_one nothing one
    somebody someone something both few many several all any most none some such""",
    "demonstrative": "this that these those",
    "interrogative": "who whom whose which what",
    "relative": "who whom whose which that",
    "intensive": REFLEXIVE,
    "nonreflexive": "i me we us you he him she her it they them",
}
SUFFIXES = """ness ment tion sion ance ence er or ist ism hood ship age able ible al ial ish ive less ful ous ic ly
ward wise ize ise en ify let ling ie ette dom logy graphy phobia y cy ty ant ent ary ery ing ed s est"""
PREFIXES = """a b c d e f g h i j k l m n o p q r s t u v w x y z un re in im dis en em non over mis sub pre inter
fore de trans super semi anti mid under mono bi tri multi poly ex micro macro auto tele homo hetero post geo aero hydro
thermo electro photo pan mega kilo pseudo neo counter ultra infra circum peri hemi ped pod bio"""
WORD_GROUPS = {
    "month": """january february march april may june july august september october november december jan feb mar apr
    jun jul aug sept oct nov dec""",
    "day_of_week": "monday tuesday wednesday thursday friday saturday sunday mon tues wed thurs fri sat sun",
    "state": """alabama alaska arizona arkansas california colorado connecticut delaware florida georgia hawaii idaho
    illinois indiana iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri
    montana nebraska nevada hampshire jersey mexico york carolina dakota ohio oklahoma oregon pennsylvania rhode
    tennessee texas utah vermont virginia washington west_virginia wisconsin wyoming""",
    "length": """meter meters metre metres inch inches foot feet yard yards mile miles kilometer kilometers kilometre
    kilometres centimeter centimeters centimetre centimetres millimeter millimeters millimetre millimetres""",
    "time": "second seconds minute minutes hour hours day days week weeks month months year years",
    "contrastive_conjuction": "but however nonetheless yet nevertheless although",
}
AS_WRITTEN = {  # lists that a word is looked for in as it is, capitals and all
    "number_word": NUMBER_WORDS,
    "state_abv": """AL AK AZ AR CA CO CT DE DC FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY
    NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY""",
}
WEBSITE_SUFFIXES = "com net org edu gov mil int io co uk ca ai"

WIDER_SYMBOLS = {
    "dash": "-‐‑‒–—―", "apostrophe": "'’‘ʼ", "quotation": '"“”„«»', "math_symbol": "+-*/=<>−×÷±^%≤≥≠≈",
    "currency": "$€£¥¢₹₽₩₿",
}  # fmt: skip
WIDER_WORDS = {
    "number_word": f"{NUMBER_WORDS} first second third fourth fifth sixth seventh eighth ninth tenth half quarter",
    "third_person_pronoun": f"{PRONOUNS['third_person']} it its itself",
    "length": WORD_GROUPS["length"] + " mm cm km ft",
    "time": WORD_GROUPS["time"] + " decade decades century centuries",
    "website_suffix": WEBSITE_SUFFIXES + " de ru info biz tv",
}


def narrower(name: str) -> str:
    """The paper's test that one of `WIDER_TESTS` is wider than."""
    return name.replace("_any_", "_", 1)


def words_of(listed: str) -> list[str]:
    """The words of a list; `_` stands for the space within one."""
    return [word.replace("_", " ") for word in listed.split()]


def _among(listed: str) -> TokenTest:
    members = frozenset(words_of(listed))
    return lambda s: s.strip().lower() in members


def _as_written(listed: str) -> TokenTest:
    members = frozenset(words_of(listed))
    return lambda s: s.strip() in members


def _contains(characters: str) -> TokenTest:
    return lambda s: any(c in characters for c in s)


def _ends(suffix: str) -> TokenTest:
    return lambda s: s.strip().lower().endswith(suffix)


def _starts(prefix: str) -> TokenTest:
    return lambda s: s.strip().lower().startswith(prefix)


def _decimal(s: str) -> bool:
    return s.strip().isdecimal()


def _digits(count: int) -> TokenTest:
    return lambda s: _decimal(s) and len(s.strip()) == count


def _integer(low: int, high: int) -> TokenTest:
    """Whole numbers from `low` to `high`, both included."""
    return lambda s: _decimal(s) and len(s) <= LONGEST_NUMBER and low <= int(s) <= high


def _first(holds: TokenTest) -> TokenTest:
    """Of the string's first character."""
    return lambda s: bool(s) and holds(s[0])


def _paper_tests() -> dict[str, TokenTest]:
    tests: dict[str, TokenTest] = {
        "all_white_space": lambda s: not s.strip(),
        "all_caps": lambda s: s.strip().isupper() and len(s.strip()) > 1,
        "all_lower": lambda s: s.strip().islower(),
        "all_alpha": lambda s: s.strip().isalpha(),
        "all_numeric": _decimal,
        "all_symbolic": lambda s: bool(s.strip()) and not any(c.isalnum() for c in s.strip()),
    }
    tests |= {f"contains_{name}": _contains(characters) for name, characters in SYMBOLS.items()}
    tests["contains_double_dollar"] = lambda s: "$$" in s
    tests |= {
        "contains_digit": lambda s: any(c.isdigit() for c in s),
        "all_digits": lambda s: s.strip().isdigit(),
        "is_number_word": _as_written(AS_WRITTEN["number_word"]),
        "is_year": _integer(1491, 2199),
        "is_one_digit": _digits(1),
        "is_two_digit": _digits(2),
        "is_three_digit": _digits(3),
        "is_four_digit": _digits(4),
        "is_lt_31": _integer(0, 31),
    }
    tests |= {f"is_{name}_pronoun": _among(words) for name, words in PRONOUNS.items()}
    tests |= {
        "starts_w_vowel": lambda s: s.strip().lower().startswith(VOWELS),
        "starts_w_consonant": lambda s: s.strip().lower().isalpha() and not s.strip().lower().startswith(VOWELS),
        "start_w_no_space": _first(lambda c: c != " "),
        "start_w_no_space_and_letter": _first(str.isalpha),
        "start_w_no_space_and_digit": _first(str.isdigit),
        "starts_w_no_space_and_cap": _first(str.isupper),
        "starts_w_no_space_and_lower": _first(str.islower),
        "starts_w_digit": _decimal,
        "starts_w_space": lambda s: s.startswith(" ") and bool(s.strip()),
        "start_w_space_and_letter": lambda s: s.startswith(" ") and s[1:2].isalpha(),
        "starts_w_cap": lambda s: s.strip()[:1].isupper(),
    }
    tests |= {f"end_w_{suffix}": _ends(suffix) for suffix in SUFFIXES.split()}
    tests |= {f"start_w_{prefix}": _starts(prefix) for prefix in PREFIXES.split()}
    tests |= {f"is_{name}": _among(words) for name, words in WORD_GROUPS.items()}
    tests["is_state_abv"] = _as_written(AS_WRITTEN["state_abv"])
    tests["is_website_suffix"] = frozenset(WEBSITE_SUFFIXES.split()).__contains__
    return tests


def _wider_tests() -> dict[str, TokenTest]:
    tests = {f"contains_any_{name}": _contains(characters) for name, characters in WIDER_SYMBOLS.items()}
    return tests | {f"is_any_{name}": _among(words) for name, words in WIDER_WORDS.items()}


TOKEN_TESTS = _paper_tests()
WIDER_TESTS = _wider_tests()
