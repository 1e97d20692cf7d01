"""Any server that speaks the OpenAI protocol as a backend (extra `explain`), written `openai:URL#NAME`.

Prompts go to that address and nowhere else: redirects are not followed.  The key comes from OPENAI_API_KEY, and is
neither stored nor shown.  What may pass (408, 409, 429 as Retry-After says, 5xx, a cut connection, a time-out) is tried
again with growing waits, then is a `BackendError`; an answer that is none is asked for again, then missing.
"""

import json
import math
import os
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from universal_neurons.errors import BackendError, ConfigError, MissingExtraError
from universal_neurons.explanations.backends import SERVER, Prompt, Reply
from universal_neurons.explanations.deadline import within
from universal_neurons.legible import legible, shortened

KEY = "OPENAI_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
AT_ONCE = 8  # requests
RETRIES = 5
SECONDS = 120.0  # without a byte of an answer
WHOLE = 600.0  # seconds for all of an answer, from its first line on
AGAIN = 2  # times that an answer which is none is asked for again
ALTERNATIVES = (20, 5, 0)  # log-probabilities asked for: the most that the protocol allows, what some allow, none
REFUSED = (400, 413, 422)  # one prompt, not all of them
SHOWN = 200  # characters of what a server says


@dataclass(frozen=True)
class Address:
    """Where a server is, and the name of its model."""

    url: str
    model: str

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return urlsplit(self.url).hostname in LOOPBACK


def address_of(named: str) -> Address:
    """The address in `openai:URL#NAME`.

    Raises `ConfigError` for another form, and for an address that holds a password, which would be stored.
    """
    url, _, model = named.removeprefix(SERVER).partition("#")
    wanted = f"{SERVER}URL#NAME, such as {SERVER}http://127.0.0.1:8000/v1#my-model"
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and model and parts.port != 0
    except ValueError:
        whole, parts = False, urlsplit("")
    if "@" in parts.netloc or parts.query:
        raise ConfigError(
            "a server's address with a password or a query", wanted=wanted, fix=f"give the key in {KEY} alone"
        )
    if not named.startswith(SERVER) or not whole:
        raise ConfigError("no address of a server", given=named, wanted=wanted)
    return Address(url.rstrip("/"), model)


class OpenAIServer:
    """A server's model as a backend; `at_once` requests are under way, each tried again `retries` times.

    An answer may keep silent for `seconds`, and take `whole` from its first line to its end.

    Raises `MissingExtraError` without the extra explain, `ConfigError` for what is no address, and for a key that would
    go to another machine in the clear.
    """

    def __init__(
        self,
        named: str,
        *,
        at_once: int = AT_ONCE,
        retries: int = RETRIES,
        seconds: float = SECONDS,
        whole: float = WHOLE,
    ) -> None:
        require_extra()
        self.address = address_of(named)
        self.identity, self.name = named, self.address.model
        self.at_once = at_once
        key = os.environ.get(KEY, "")
        if key and self.address.url.startswith("http:") and not self.address.is_here:
            raise ConfigError(
                f"{named}: {KEY} would go there in the clear", wanted="https://", fix=f"or leave {KEY} unset"
            )
        self.client = _client(self.address, key, retries, seconds, whole)
        self.options: dict[str, Any] = {"temperature": 0.0, "limit": "max_tokens", "top_logprobs": ALTERNATIVES[0]}
        self.changing = Lock()

    def replies(self, prompts: Sequence[Prompt]) -> Generator[tuple[int, Reply], None, None]:
        """The reply to every prompt, as they come; where the server fails, first those of the requests under way."""
        left = iter(enumerate(prompts))
        failed: BackendError | None = None
        with ThreadPoolExecutor(self.at_once) as pool:
            under_way: dict[Future[Reply], int] = {}
            while True:
                while failed is None and len(under_way) < self.at_once:
                    place, prompt = next(left, (0, None))
                    if prompt is None:
                        break
                    under_way[pool.submit(self.reply, prompt)] = place
                if not under_way:
                    break
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    place = under_way.pop(done)
                    try:
                        reply = done.result()
                    except BackendError as error:
                        failed = failed or error
                    else:
                        yield place, reply
        if failed is not None:
            raise failed

    def reply(self, prompt: Prompt) -> Reply:
        """The reply to one prompt.  Raises `BackendError` where the server does not give one, whatever is asked."""
        reply = Reply()
        for _ in range(1 + AGAIN):
            answer, refusal = self._answered(prompt)
            reply = refusal or self._read(answer, prompt)
            if refusal or reply.final:
                break
        return reply

    def _answered(self, prompt: Prompt) -> tuple[bytes, Reply | None]:
        """A server's answer, or that it refuses this prompt; options that it refuses are left out from then on."""
        import openai

        while True:
            options = dict(self.options)
            try:
                sent = self.client.chat.completions.with_raw_response.create(**self._request(prompt, options))
                return sent.http_response.content, None
            except openai.APIStatusError as error:
                said = _said(error)
                if error.status_code == 400 and self._without(options, said):
                    continue
                if error.status_code in REFUSED:
                    return b"", Reply(text=said, missing=f"refused by the server ({error.status_code})", final=False)
                raise self._failed(said) from None
            except openai.OpenAIError as error:
                raise self._failed(_said(error)) from None

    def _request(self, prompt: Prompt, options: dict[str, Any]) -> dict[str, Any]:
        choosing = bool(prompt.answers)
        several = any(len(answer) > 1 and answer.isdigit() for answer in prompt.answers)
        request = {
            "model": self.address.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            options["limit"]: 1 + several if choosing else prompt.tokens,
        }
        if options["temperature"] is not None:
            request["temperature"] = options["temperature"]
        if choosing and options["top_logprobs"]:
            request |= {"logprobs": True, "top_logprobs": options["top_logprobs"]}
        return request

    def _without(self, used: dict[str, Any], said: str) -> bool:
        """Whether a refusal names an option that can be left out; it is, unless another request has done so."""
        with self.changing:
            if self.options != used:
                return True
            if "logprobs" in said and used["top_logprobs"]:
                self.options["top_logprobs"] = ALTERNATIVES[ALTERNATIVES.index(used["top_logprobs"]) + 1]
            elif "max_completion_tokens" in said and used["limit"] == "max_tokens":
                self.options["limit"] = "max_completion_tokens"
            elif "temperature" in said and used["temperature"] is not None:
                self.options["temperature"] = None
            else:
                return False
            return True

    def _failed(self, said: str) -> BackendError:
        return BackendError(
            f"{self.identity}: the server does not answer",
            given=said,
            wanted="an answer",
            fix="mend that, then run the same command again: what was answered is kept",
        )

    def _read(self, content: bytes, prompt: Prompt) -> Reply:
        """A reply from a server's answer, which may be anything."""
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Reply(missing="an answer that is none of the protocol", final=False)
        read, written = _count(answer, "prompt_tokens"), _count(answer, "completion_tokens")
        return replace(_meant(choice, text.strip(), prompt.answers), read=read, written=written)


def require_extra() -> None:
    """Raise `MissingExtraError` where the client is not installed."""
    if find_spec("openai") is None:
        raise MissingExtraError(
            "openai is not installed", wanted="the extra explain", fix="pip install 'universal-neurons[explain]'"
        )


def _said(error: Exception) -> str:
    """What a server says, short, on one line, and without the key."""
    text, key = f"{error} {error.__cause__ or ''}".strip(), os.environ.get(KEY)
    return shortened(legible(text.replace(key, "…") if key else text), SHOWN)


def _client(address: Address, key: str, retries: int, seconds: float, whole: float) -> Any:
    """The client: no redirects, no proxy for a server on this machine, no answer without an end."""
    import openai

    kind: Any = openai.DefaultHttpxClient
    hooks = {"response": [within(kind, whole)]}
    http = kind(follow_redirects=False, trust_env=not address.is_here, event_hooks=hooks)
    return openai.OpenAI(
        api_key=key or "none", base_url=address.url, timeout=seconds, max_retries=retries, http_client=http
    )


def _meant(choice: Any, text: str, answers: Sequence[str]) -> Reply:
    """What a choice says: text where none of `answers` is wanted, else probabilities, else the answer that it is."""
    if not answers:
        return Reply(text=text, missing="" if text else "an empty text")
    chosen = _by_probability(choice, answers)
    if chosen is not None:
        return Reply(chosen)
    place = _place(text, answers)
    if place is None:
        return Reply(text=text, missing="another text than the answers")
    return Reply(tuple(0.0 if number == place else -math.inf for number in range(len(answers))), by_token=True)


def _count(answer: Any, name: str) -> int:
    """How many tokens an answer says there were; 0 where it does not say."""
    with suppress(KeyError, TypeError):
        if isinstance(answer["usage"][name], int):
            return max(answer["usage"][name], 0)
    return 0


def _place(token: str, answers: Sequence[str]) -> int | None:
    """Which answer a token, or a text, is."""
    bare = token.strip(" \t\r\n▁Ġ.").casefold()
    return next((place for place, answer in enumerate(answers) if answer.casefold() == bare), None)


def _by_probability(choice: Any, answers: Sequence[str]) -> tuple[float, ...] | None:
    """The log-probabilities of the answers, as far as a server gives those of tokens; None where of no answer.

    "1" with "0" after it is 10, as far as the server wrote 1: then the token after it is known.
    """
    try:
        first, *more = [_likeliest(token) for token in choice["logprobs"]["content"]]
        sizes = [0.0] * len(answers)
        for token, value in first.items():
            place = _place(token, answers)
            if place is not None:
                sizes[place] += math.exp(value)
        written = choice["logprobs"]["content"][0]["token"]
        if more and (begun := _place(written, answers)) is not None:
            _move_on(sizes, answers, begun, more[0])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    if not any(sizes):
        return None
    return tuple(math.log(size) if size > 0 else -math.inf for size in sizes)


def _likeliest(token: Any) -> dict[str, float]:
    """The log-probabilities of a token that was written and of those that might have been."""
    listed = [*(token.get("top_logprobs") or ()), token]
    values = {one["token"]: float(one["logprob"]) for one in listed}
    if not all(value <= 1e-3 for value in values.values()):
        raise ValueError("no log-probability")
    return values


def _move_on(sizes: list[float], answers: Sequence[str], begun: int, following: dict[str, float]) -> None:
    """Give an answer that another begins what the token after the beginning says is its."""
    beginning, whole = answers[begun], sizes[begun]
    for token, value in following.items():
        place = _place(beginning + token, answers)
        if place is not None and place != begun:
            part = min(whole * math.exp(value), sizes[begun])
            sizes[place], sizes[begun] = sizes[place] + part, sizes[begun] - part
