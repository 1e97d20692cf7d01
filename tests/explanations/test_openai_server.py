"""A server that answers, fails, stalls or answers nonsense: tried again, then a named error, or missing and counted."""

import math
import time

import numpy as np
import pytest
from stand_in import StandIn, by_digits, chat

from universal_neurons.errors import BackendError, ConfigError, MissingExtraError
from universal_neurons.explanations import Answers, Asked, Kind, OpenAIServer, Prices, Prompt, Question, backend_of
from universal_neurons.explanations.openai_server import address_of

YES_NO = ("yes", "no")
WITH, WITHOUT = ("In", " 19", "45"), ("The", " cat")
KEY = "sk-very-secret-0123456789"
ERROR = {"error": {"message": "it is broken", "type": "server_error"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Waits that grow from a hundredth of a second, and no key of whoever runs the tests."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def stand_in():
    made = StandIn()
    with made.running() as made.address:
        yield made


def detection(tokens=WITH, explanation="Fires on digits.") -> Question:
    return Question(Kind.DETECTION, explanation, tuple(tokens))


def prompts(count: int) -> list[Prompt]:
    """Questions that the stand-in knows, all different."""
    from universal_neurons.explanations.prompts import Templates, prompt_of

    return [prompt_of(detection((f"{number}",)), Templates()) for number in range(count)]


def one(stand_in, prompt=None, **options):
    (place, reply), *more = OpenAIServer(stand_in.address, **options).replies([prompt or prompts(1)[0]])
    assert place == 0
    assert not more
    return reply


def test_scores_are_the_probabilities_that_the_server_gives(stand_in, tmp_path):
    with Answers(tmp_path / "answers", backend_of(stand_in.address)) as answers:
        scorer = Asked(answers)
        given = scorer.probabilities(
            [detection(), detection(WITHOUT), Question(Kind.FUZZING, "digits", WITH, (0,)),
             Question(Kind.FUZZING, "digits", WITH, (1, 2))]
        )  # fmt: skip
        np.testing.assert_allclose(given, [0.9, 0.1, 0.1, 0.9], rtol=1e-12)
        strengths = scorer.strengths(
            [Question(Kind.SIMULATION, "digits", WITH), Question(Kind.SIMULATION, "d", ("a",))]
        )
        np.testing.assert_allclose(strengths, [[0, 7, 7], [0, np.nan, np.nan]])
        assert answers.totals() == "answered 8, from the file 0; tokens read 800, written 16"
    body = stand_in.requests[0]
    assert {name: body[name] for name in ("model", "temperature", "max_tokens", "logprobs", "top_logprobs")} == {
        "model": "m", "temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip


def test_requests_are_under_way_at_once_but_no_more_than_said(stand_in):
    replies = dict(OpenAIServer(stand_in.address, at_once=3).replies(prompts(20)))
    assert sorted(replies) == list(range(20))
    assert 1 < stand_in.most_at_once <= 3


@pytest.mark.parametrize(
    "fault", [(500, {}, ERROR), (429, {}, ERROR), (503, {}, b"<html>"), (408, {}, ERROR), "cut"], ids=str
)
def test_what_may_pass_is_tried_again(stand_in, fault):
    stand_in.faults = [fault, fault]
    assert one(stand_in).shares == pytest.approx((0.9, 0.1))
    assert len(stand_in.requests) == 3


def test_retry_after_is_waited_for(stand_in):
    stand_in.faults = [(429, {"Retry-After": "0.4"}, ERROR)]
    began = time.monotonic()
    assert not one(stand_in).missing
    assert time.monotonic() - began > 0.4


def test_a_server_that_stalls_is_tried_again_and_then_named(stand_in):
    stand_in.faults = ["stall"]
    assert not one(stand_in, seconds=0.3, retries=1).missing
    stand_in.faults = ["stall", "stall"]
    with pytest.raises(BackendError, match=r"does not answer(.|\n)*timed out"):
        one(stand_in, seconds=0.2, retries=1)


def test_a_server_that_drips_is_cut_off(stand_in, monkeypatch):
    """Though something comes all the time: not in the end, or too much."""
    stand_in.faults = ["drip"]
    assert not one(stand_in, whole=0.2, retries=1).missing
    stand_in.faults = ["drip", "drip"]
    began = time.monotonic()
    with pytest.raises(BackendError, match="does not answer"):
        one(stand_in, whole=0.2, retries=1)
    assert time.monotonic() - began < 5
    monkeypatch.setattr("universal_neurons.explanations.deadline.BYTES", 1000)
    stand_in.faults = [(200, {}, b" " * 2000)]
    assert not one(stand_in, retries=1).missing
    assert len(stand_in.requests) == 6


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((500, {}, ERROR), "it is broken"),
        ("cut", "Connection error"),
        ((401, {}, {"error": {"message": f"bad key {KEY}"}}), "bad key …"),
        ((404, {}, {"error": {"message": "no model m"}}), "no model m"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "302"),
    ],
    ids=str,
)
def test_a_server_that_goes_on_failing_is_a_named_error_without_the_key(stand_in, monkeypatch, fault, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stand_in.faults = [fault] * 3
    with pytest.raises(BackendError, match="the server does not answer") as caught:
        one(stand_in, retries=2)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert set(stand_in.keys) == {f"Bearer {KEY}"}


def test_no_server_is_a_named_error():
    with pytest.raises(BackendError, match="Connection error"):
        list(OpenAIServer("openai:http://127.0.0.1:9/v1#m", retries=0).replies(prompts(1)))


NONSENSE = [
    (200, {}, b"not JSON"), (200, {"Content-Type": "text/html"}, b"<html>busy</html>"), (200, {}, b""), (200, {}, []),
    (200, {}, {"choices": []}), (200, {}, {"choices": None}), (200, {}, {"choices": [{"message": {"content": None}}]}),
    (200, {}, {"error": "none"}), (200, {}, b"[" * 100_000), (200, {}, {"choices": [{}]}), (200, {}, 5),
]  # fmt: skip


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_asked_for_again_then_missing(stand_in, nonsense):
    stand_in.faults = [nonsense]
    assert one(stand_in).shares == pytest.approx((0.9, 0.1))
    stand_in.faults = [nonsense] * 3
    reply = one(stand_in)
    assert reply.missing == "an answer that is none of the protocol"
    assert not reply.final


@pytest.mark.parametrize(
    ("answer", "chosen", "by_token"),
    [
        (chat("Yes."), (1, 0), True),
        (chat(" no"), (0, 1), True),
        (chat("Yes, it does"), None, None),
        (chat("maybe"), None, None),
        (chat(""), None, None),
        (chat("maybe", [{"maybe": math.log(0.6), "yes": math.log(0.3), "No": math.log(0.1)}]), (0.75, 0.25), False),
        (chat("maybe", [{"maybe": 0.0, "perhaps": -5.0}]), None, None),
        (chat("no", [{"yes": math.nan}]), (0, 1), True),
        (chat("no", [{"yes": 700.0}]), (0, 1), True),
        (chat("no", []), (0, 1), True),
        (chat("yes", [{"yes": -0.1, "no": -math.inf}]), (1, 0), False),
    ],
)
def test_a_choice_is_read_from_probabilities_else_from_one_token_else_missing(stand_in, answer, chosen, by_token):
    stand_in.rule = lambda _body: answer
    reply = one(stand_in)
    assert reply.final
    assert (reply.read, reply.written) == (100, 2)
    if chosen is None:
        assert (reply.missing, reply.shares) == ("another text than the answers", ())
    else:
        assert (reply.shares, reply.by_token) == (pytest.approx(chosen), by_token)


@pytest.mark.parametrize(
    ("answer", "mean"),
    [
        (chat("10"), 10),
        (chat("10", [{"10": 0.0}]), 10),
        (chat("10", [{"1": 0.0}, {"0": math.log(0.75), "<end>": math.log(0.25)}]), 7.75),
        (chat("1", [{"1": math.log(0.5), "3": math.log(0.5)}, {"<end>": 0.0}]), 2),
        (chat("7", [{"7": 0.0}, {"<end>": 0.0}]), 7),
    ],
)
def test_ten_is_told_from_one(stand_in, tmp_path, answer, mean):
    stand_in.rule = lambda _body: answer
    with Answers(tmp_path / "answers", OpenAIServer(stand_in.address)) as answers:
        (given,) = Asked(answers).strengths([Question(Kind.SIMULATION, "x", ("a",))])
    assert given == pytest.approx([mean])
    assert stand_in.requests[0]["max_tokens"] == 2


def test_options_that_a_server_refuses_are_left_out(stand_in):
    answer, send = by_digits, stand_in.send

    def picky(handler, status, headers, content):
        body = stand_in.requests[-1]
        said = None
        if body.get("top_logprobs", 0) > 5:
            said = "top_logprobs must be at most 5"
        elif "max_tokens" in body:
            said = "Unsupported parameter: max_tokens. Use max_completion_tokens instead."
        elif "temperature" in body:
            said = "temperature does not support 0.0"
        send(handler, *((400, {}, {"error": {"message": said}}) if said else (status, headers, content)))

    stand_in.send, stand_in.rule = picky, answer
    server = OpenAIServer(stand_in.address, at_once=1)
    assert [reply.shares for _, reply in server.replies(prompts(2))] == [pytest.approx((0.9, 0.1))] * 2
    assert len(stand_in.requests) == 5  # three refusals, once
    assert stand_in.requests[-1].keys() == {"model", "messages", "max_completion_tokens", "logprobs", "top_logprobs"}


def test_a_refused_prompt_is_missing_and_others_are_not(stand_in, tmp_path):
    stand_in.faults = [(400, {}, {"error": {"message": "content filter"}})]
    with Answers(tmp_path / "answers", OpenAIServer(stand_in.address, at_once=1)) as answers:
        first, second = answers.ask(prompts(2))
        assert first.missing == "refused by the server (400)"
        assert "content filter" in first.text
        assert not second.missing
        assert "missing 1 (refused by the server (400))" in answers.totals()


def test_a_server_that_refuses_everything_is_a_named_error(stand_in, tmp_path):
    stand_in.faults = [(400, {}, {"error": {"message": "no such thing"}})] * 40
    with (
        Answers(tmp_path / "answers", OpenAIServer(stand_in.address, at_once=2)) as answers,
        pytest.raises(BackendError, match=r"answers nothing that it is asked(.|\n)*no such thing"),
    ):
        answers.ask(prompts(40))
    assert len(stand_in.requests) <= 10


def test_an_interrupted_run_asks_only_what_is_missing(stand_in, tmp_path):
    asked, path = prompts(12), tmp_path / "answers"
    stand_in.faults = [None] * 5 + [(500, {}, ERROR)] * 20
    with Answers(path, OpenAIServer(stand_in.address, at_once=2, retries=0)) as answers, pytest.raises(BackendError):
        answers.ask(asked)
    kept = len(path.read_bytes().splitlines())
    assert kept == 5
    stand_in.faults, before = [], len(stand_in.requests)
    with Answers(path, OpenAIServer(stand_in.address)) as answers:
        replies = answers.ask(asked)
        assert answers.totals().startswith("answered 7, from the file 5;")
    assert len(stand_in.requests) - before == 7
    assert [reply.shares for reply in replies] == [pytest.approx((0.9, 0.1))] * 12


def test_what_is_under_way_when_a_server_fails_is_kept(stand_in, tmp_path):
    """One request fails at once while others are being answered."""
    rule = stand_in.rule
    stand_in.rule = lambda body: time.sleep(0.2) or rule(body)
    stand_in.faults = [None, None, (401, {}, ERROR)]
    path = tmp_path / "answers"
    with Answers(path, OpenAIServer(stand_in.address, at_once=3)) as answers, pytest.raises(BackendError):
        answers.ask(prompts(9))
    assert len(path.read_bytes().splitlines()) == 2
    assert len(stand_in.requests) == 3


def test_the_key_is_sent_and_kept_nowhere(stand_in, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Answers(tmp_path / "answers", OpenAIServer(stand_in.address), prices=Prices(2.0, 10.0)) as answers:
        print(answers.forecast(prompts(3)))
        answers.ask(prompts(3))
        print(answers.totals(), repr(answers.backend), vars(answers))
    said = "".join(capfd.readouterr())
    assert set(stand_in.keys) == {f"Bearer {KEY}"}
    assert KEY not in said + (tmp_path / "answers").read_text()
    assert "questions 3 (answered before 0); tokens to read about " in said
    assert "cost about 0.00" in said
    assert "tokens read 300, written 6, cost 0.0007" in said


@pytest.mark.parametrize(
    "named",
    ["openai:", "openai:http://h", "openai:ftp://h#m", "openai:h#m", "openai:http://#m", "openai:http://h:x#m",
     "openai:http://u:p@h/v1#m", "openai:https://h/v1?api_key=k#m", "openai:http://[#m"],
)  # fmt: skip
def test_what_is_no_address_is_refused(named):
    with pytest.raises(ConfigError) as caught:
        address_of(named)
    assert "p@" not in str(caught.value)


def test_a_key_does_not_go_to_another_machine_in_the_clear(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match="in the clear") as caught:
        OpenAIServer("openai:http://example.org/v1#m")
    assert KEY not in str(caught.value)
    assert OpenAIServer("openai:https://example.org/v1#m").address.model == "m"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert OpenAIServer("openai:http://example.org/v1#m")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("universal_neurons.explanations.openai_server.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="extra explain"):
        OpenAIServer("openai:http://127.0.0.1:1/v1#m")
