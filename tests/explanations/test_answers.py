"""Answers are kept by what was asked: a repeated run asks nothing, an interrupted one what is missing."""

import math

import pytest

from universal_neurons.errors import AnswersError, BackendError, StoreConflictError
from universal_neurons.explanations import Answers, Backend, Prices, Prompt, Reply
from universal_neurons.explanations.answers import line_of, read_answers

CHOICE = Prompt("s", "u", ("yes", "no"))
TEXT = Prompt("s", "explain", tokens=20)


class Echo:
    """A backend that answers by rule, counts what it is asked, and fails after `lasts` replies."""

    def __init__(self, identity: str = "echo", lasts: float = math.inf, **reply) -> None:
        self.name, self.identity, self.lasts, self.given = identity, identity, lasts, reply
        self.asked: list[Prompt] = []

    def replies(self, prompts):
        for place, prompt in reversed(list(enumerate(prompts))):
            if len(self.asked) >= self.lasts:
                raise BackendError("gone")
            self.asked.append(prompt)
            plain = {"chosen": (-0.5, -math.inf)} if prompt.answers else {"text": f"about {prompt.user}\n"}
            yield place, Reply(**{**plain, "read": 10, "written": 1, **self.given})


def numbered(count: int) -> list[Prompt]:
    return [Prompt("s", str(number), ("yes", "no")) for number in range(count)]


def ask(path, backend, prompts):
    with Answers(path, backend) as answers:
        return answers.ask(prompts), answers.totals()


def test_what_was_answered_is_not_asked_again(tmp_path):
    echo = Echo()
    assert isinstance(echo, Backend)
    first, totals = ask(tmp_path / "a", echo, [CHOICE, TEXT, CHOICE])
    assert echo.asked == [TEXT, CHOICE]
    assert totals == "answered 2, from the file 0; tokens read 20, written 2"
    again, totals = ask(tmp_path / "a", Echo(lasts=0), [CHOICE, TEXT, CHOICE])
    assert [(r.chosen, r.text) for r in again] == [(r.chosen, r.text) for r in first]
    assert first[0].chosen == first[2].chosen == (-0.5, -math.inf)
    assert first[1].text == "about explain\n"
    assert totals == "answered 0, from the file 2; tokens read 0, written 0"


def test_whatever_changes_what_is_asked_is_another_question(tmp_path):
    others = [
        Prompt("s", "u", ("no", "yes")), Prompt("su", "", ("yes", "no")), Prompt("s", "u", ("yes", "no"), 2),
        Prompt("s", "u"), Prompt("", "su", ("yes", "no")), Prompt("s", "u", ("yesno",)), Prompt("s", "u\ud800", ("yes", "no")),
    ]  # fmt: skip
    ask(tmp_path / "a", Echo(), [CHOICE])
    echo = Echo()
    ask(tmp_path / "a", echo, [CHOICE, *others])
    assert echo.asked == others[::-1]
    other = Echo("another")
    ask(tmp_path / "a", other, [CHOICE])
    assert other.asked == [CHOICE]


def test_nothing_is_lost_when_the_backend_fails(tmp_path):
    with Answers(tmp_path / "a", Echo(lasts=3)) as answers, pytest.raises(BackendError, match="gone"):
        answers.ask(numbered(5))
    echo = Echo()
    replies, _ = ask(tmp_path / "a", echo, numbered(5))
    assert [prompt.user for prompt in echo.asked] == ["1", "0"]
    assert len(replies) == 5


@pytest.mark.parametrize("torn", [1, 20, 150])
def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path, torn):
    path = tmp_path / "a"
    ask(path, Echo(), numbered(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    echo = Echo()
    ask(path, echo, numbered(3))
    assert len(echo.asked) == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0].replace(b"-0.5", b"-0.4"), *lines[1:]],
        lambda lines: [b"\n", *lines],
        lambda lines: [*lines, b"00000000 {}\n"],
        lambda lines: [b"%PDF\n", *lines],
        lambda lines: [lines[0] + lines[1][5:], *lines[2:]],
        lambda lines: [lines[0], b"\0" * 40 + b"\n"],
        lambda lines: [b"f" * 8 + lines[0][8:], *lines[1:]],
    ],
)
def test_a_damaged_file_is_a_named_error_and_stays(tmp_path, damage):
    path = tmp_path / "a"
    ask(path, Echo(), numbered(3))
    damaged = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(damaged)
    with pytest.raises(AnswersError, match=r"line \d is damaged"):
        ask(path, Echo(), numbered(3))
    assert path.read_bytes() == damaged
    with Answers(tmp_path / "b", Echo()):
        pass  # the lock of another file is free


def test_a_line_with_a_right_checksum_and_wrong_content_is_damaged(tmp_path):
    import zlib

    for content in (b"{}", b"[]", b"5", b'{"asked": "k", "chosen": [], "other": 1}', b'{"asked": "k", "chosen": null}'):
        (tmp_path / "a").write_bytes(b"%08x %s\n" % (zlib.crc32(content), content))
        with pytest.raises(AnswersError, match="line 1 is damaged"):
            read_answers(tmp_path / "a")


def test_one_process_writes(tmp_path):
    with (
        Answers(tmp_path / "a", Echo()),
        pytest.raises(StoreConflictError, match="another process"),
        Answers(tmp_path / "a", Echo()),
    ):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(StoreConflictError, match="symbolic link"), Answers(tmp_path / "link", Echo()):
        pass


def test_missing_for_good_is_kept_and_counted_again_and_else_asked_again(tmp_path):
    replies, totals = ask(tmp_path / "a", Echo(missing="another text", chosen=()), numbered(2))
    assert [reply.shares for reply in replies] == [(), ()]
    assert totals == "answered 0, from the file 0, missing 2 (another text); tokens read 20, written 2"
    _, totals = ask(tmp_path / "a", Echo(lasts=0), numbered(2))
    assert totals == "answered 0, from the file 2, missing 2 (another text); tokens read 0, written 0"
    ask(tmp_path / "a", Echo(missing="busy", final=False), [CHOICE])
    echo = Echo()
    ask(tmp_path / "a", echo, [CHOICE])
    assert echo.asked == [CHOICE]


def test_a_backend_that_answers_nothing_is_stopped(tmp_path):
    echo = Echo(missing="no idea", text="hm")
    with pytest.raises(BackendError, match=r"answers nothing(.|\n)*no idea: hm; without an answer in all: 8"):
        ask(tmp_path / "a", echo, numbered(50))
    assert len(echo.asked) == 8


def test_a_backend_that_has_answered_once_is_asked_on(tmp_path):
    ask(tmp_path / "a", Echo(), [CHOICE])
    replies, _ = ask(tmp_path / "a", Echo(missing="no idea"), numbered(20))
    assert all(reply.missing for reply in replies)


def test_cost_is_said_before(tmp_path):
    with Answers(tmp_path / "a", Echo(), prices=Prices(1e6, 5e5)) as answers:
        prompts = [Prompt("four", "more", ("yes", "no")), Prompt("none", "four" * 3, tokens=50)]
        assert answers.forecast(prompts) == (
            "questions 2 (answered before 0); tokens to read about 6, to write at most 51, cost about 31.5000 at most"
        )
        answers.ask(prompts[:1])
        assert answers.totals() == "answered 1, from the file 0; tokens read 10, written 1, cost 10.5000"
        assert answers.forecast(prompts).startswith("questions 1 (answered before 1); tokens to read about 4,")


def test_the_words_of_questions_are_not_in_the_file(tmp_path):
    ask(tmp_path / "a", Echo(), [Prompt("secret one", "secret two", ("yes", "no"))])
    assert b"secret" not in (tmp_path / "a").read_bytes()
    assert line_of("k", Reply((0.0, -math.inf))).isascii()
