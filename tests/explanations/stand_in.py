"""A server on loopback that speaks the OpenAI protocol: it checks what it is asked, answers by a rule, fails on demand."""

import contextlib
import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLAIN = r"[^<>\n]*"
MARKED = r"(?:[^<>\n]|<<[^<>\n]+>>)*"
FORMS = {
    "detection": rf"<description>({PLAIN})</description>\n<text>({PLAIN})</text>\nDoes the unit of this description .*",
    "fuzzing": rf"<description>({PLAIN})</description>\n<text>({MARKED})</text>\nAre the tokens marked .*",
    "simulation": rf"<description>({PLAIN})</description>\n<text>({PLAIN})</text>\nThe text up to .*<place>"
    rf"({PLAIN}<<[^<>\n]+>>)</place>\nHow strongly .*",
    "explaining": rf"((?:<text band='{PLAIN}'>{MARKED}</text>\n<strengths>{MARKED}</strengths>\n)*)Next .*<raised>"
    rf"({MARKED})</raised>\nNext .*<lowered>({MARKED})</lowered>\nIn one sentence, .*",
}


def asked(body: dict) -> tuple[str, tuple[str, ...]]:
    """What kind of question a request is and what it is filled with; nothing else may be in it."""
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "meant for you. Answer" in system["content"]
    found = [(kind, m) for kind, form in FORMS.items() if (m := re.fullmatch(form, user["content"]))]
    assert len(found) == 1, user["content"]
    return found[0][0], found[0][1].groups()


def chat(text: str, logprobs: list[dict[str, float]] | None = None) -> dict:
    """An answer of the protocol; log-probabilities of each written token's alternatives, the written one first."""
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if logprobs is not None:
        listed = [[{"token": token, "logprob": value} for token, value in one.items()] for one in logprobs]
        choice["logprobs"] = {"content": [{**one[0], "top_logprobs": one} for one in listed]}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def by_digits(body: dict) -> dict:
    """Yes with 0.9 where the text (its marked part, its last token) has a digit, else with 0.1; strength 8 or 0."""
    kind, parts = asked(body)
    if kind == "explaining":
        return chat("Fires on digits.\nMore.")
    seen = {"detection": lambda: parts[1], "fuzzing": lambda: "".join(re.findall("<<(.*?)>>", parts[1]))}
    text = seen[kind]() if kind in seen else re.search("<<(.*?)>>$", parts[2])[1]
    has = bool(re.search(r"\d", text))
    if kind == "simulation":
        return chat(*(("8", [{"8": math.log(0.75), " 4": math.log(0.25)}]) if has else ("0", [{"0": 0.0}])))
    yes, no = (0.9, 0.1) if has else (0.1, 0.9)
    return chat("yes", [{"Yes": math.log(yes * 0.5), " yes": math.log(yes * 0.5), "no": math.log(no)}])


class StandIn:
    """The server: `faults` are used up first, one a request; `requests` are the bodies it read, `keys` the headers."""

    def __init__(self, rule: Callable[[dict], dict] = by_digits) -> None:
        self.rule = rule
        self.faults: list = []
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.released = threading.Event()  # of those who stall

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"openai:http://127.0.0.1:{server.server_port}/v1#m"
        finally:
            self.released.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(outer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    fault = outer.faults.pop(0) if outer.faults else None
                try:
                    outer._answer(self, body, fault)
                finally:
                    with outer.lock:
                        outer.at_once -= 1

        return Handler

    def _answer(self, handler, body: dict, fault) -> None:
        if fault == "cut":
            whole = json.dumps(self.rule(body)).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[: len(whole) // 2])
            handler.wfile.flush()
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
        elif fault == "stall":
            self.released.wait(5)
            handler.close_connection = True
        elif fault == "drip":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            with contextlib.suppress(OSError):
                while not self.released.wait(0.02):
                    handler.wfile.write(b" ")
            handler.close_connection = True
        elif isinstance(fault, tuple):  # status, headers, body
            self.send(handler, *fault)
        else:
            time.sleep(0.002)
            self.send(handler, 200, {}, self.rule(body))

    def send(self, handler, status: int, headers: dict, content) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
