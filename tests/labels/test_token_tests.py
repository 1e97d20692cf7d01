"""The tests of a token's string, on strings picked by hand."""

import pytest

from universal_neurons.labels.token_tests import TOKEN_TESTS


@pytest.mark.parametrize(("name", "yes", "no"), [
    ("all_white_space", [" ", "\n\n", "\t "], ["", " a", "."]),
    ("all_caps", ["AB", " NASA"], ["A", " A", "Ab", "A1", "", " I"]),
    ("all_lower", [" the", "x"], ["The", " a1", "", " "]),
    ("all_alpha", [" The", "é"], ["a1", "'s", "", " "]),
    ("all_numeric", [" 12", "7"], ["1a", "", " "]),
    ("all_symbolic", [" ->", "!"], [" ", "", "a!", "1."]),
    ("contains_period", [".", " e.g."], [",", ""]),
    ("contains_dash", ["-", "a–b"], ["_", ""]),
    ("contains_apostrophe", ["'s", "’"], ['"', "s"]),
    ("contains_open_paren", [" (", "()"], [")", "["]),
    ("contains_closing_punc", [")", "]", "};"], ["(", "["]),
    ("contains_opening_punc", ["(", "[", " {"], [")", "]"]),
    ("contains_backslash", ["\\n"], ["/", "\n"]),
    ("contains_math_symbol", [" +", "=="], ["a", "."]),
    ("contains_currency", ["$", " €"], ["#"]),
    ("contains_dollar", [" $"], ["€"]),
    ("contains_double_dollar", ["$$"], ["$", "$ $"]),
    ("contains_digit", ["a1", " 12"], ["one", ""]),
    ("all_digits", ["12", " 7"], ["1.2", "", "a"]),
    ("is_number_word", [" seven", "Ninety"], ["7", " sevens"]),
    ("is_year", ["1491", " 2024", "2199"], ["1490", "2200", " 1999a", "year"]),
    ("is_lt_31", ["0", " 7", "30"], ["31", "-1", "3.0", ""]),
    ("is_one_digit", ["1", " 0"], ["12", "a"]),
    ("is_two_digit", ["12"], ["1", "123"]),
    ("is_three_digit", [" 123"], ["12", "1234"]),
    ("is_four_digit", ["0001"], ["123", "12345"]),
    ("is_male_pronoun", [" he", "His"], ["she", "hi"]),
    ("is_female_pronoun", [" she", "HER"], ["he", "here"]),
    ("is_neutral_pronoun", [" it", "they"], ["he"]),
    ("is_first_person_pronoun", [" I", "we"], ["you", "it"]),
    ("is_second_person_pronoun", [" you", "thy"], ["I", "he"]),
    ("is_third_person_pronoun", ["them", " itself"], ["you", "us"]),
    ("is_plural_pronoun", ["we", "these"], ["I", "this"]),
    ("is_singular_pronoun", ["I", "this"], ["we", "these"]),
    ("is_subject_pronoun", ["they"], ["them"]),
    ("is_object_pronoun", ["them"], ["they"]),
    ("is_possessive_pronoun", [" my", "whose"], ["me", "who"]),
    ("is_reflexive_pronoun", ["oneself"], ["one", "self"]),
    ("is_nonreflexive_pronoun", ["mine"], ["myself"]),
    ("is_demonstrative_pronoun", ["those"], ["it"]),
    ("is_interrogative_pronoun", ["which"], ["it"]),
    ("is_relative_pronoun", ["that"], ["it"]),
    ("is_indefinite_pronoun", ["anyone"], ["one day", "he"]),
    ("start_w_vowel", [" apple", "Up"], ["by", "1a", "", " "]),
    ("start_w_consonant", [" by", "Cat"], ["up", "1", "'s"]),
    ("start_w_no_space", ["ing", "1", "."], [" ing", "\n", ""]),
    ("start_w_no_space_and_letter", ["ing"], [" ing", "1", ""]),
    ("start_w_no_space_and_digit", ["1a", "12"], [" 1", "a1", ""]),
    ("start_w_no_space_and_capital", ["The"], [" The", "the"]),
    ("start_w_no_space_and_lower", ["the"], [" the", "The", "1"]),
    ("start_w_digit", ["1a", " 1"], ["a1", "", " "]),
    ("start_w_space", [" a", " "], ["a ", "\na", ""]),
    ("start_w_space_and_letter", [" a"], [" ", " 1", "a", "  a"]),
    ("start_w_capital", [" The", "A"], ["tHE", "1A", ""]),
    ("end_w_ing", [" being", "ing", "SING"], ["inga", "in", ""]),
    ("end_w_ness", [" Madness"], ["nes"]),
    ("end_w_y", [" may "], ["yes"]),
    ("start_w_z", [" zoo", "Z"], ["ooz", ""]),
    ("start_w_un", [" undo", "Un"], ["fun", "u"]),
    ("start_w_micro", ["microscope"], ["macro"]),
    ("is_month", [" May", "sept"], ["mayor"]),
    ("is_day_of_week", [" Friday"], ["day"]),
    ("is_state", [" Ohio"], ["OH"]),
    ("is_state_abv", [" OH", "CA"], ["oh", "Ohio"]),
    ("is_website_suffix", ["com", " org"], [".com"]),
    ("is_length", [" miles"], ["smile"]),
    ("is_time", [" hours"], ["our"]),
    ("is_contrastive_conjunction", [" however", "but"], ["and"]),
])  # fmt: skip
def test_token_tests_by_hand(name, yes, no):
    test = TOKEN_TESTS[name]
    assert [s for s in yes if not test(s)] == []
    assert [s for s in no if test(s)] == []


def test_there_are_the_papers_207_token_tests_and_none_holds_for_the_empty_string():
    assert len(TOKEN_TESTS) == 207
    assert sum(name.endswith("_pronoun") for name in TOKEN_TESTS) == 19
    assert not any(holds("") for holds in TOKEN_TESTS.values())
