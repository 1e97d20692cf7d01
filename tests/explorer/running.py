"""A server that runs in a thread of the tests' own."""

import contextlib
import http.client
import socket
import threading
from pathlib import Path

from universal_neurons.explorer import serving


class Running:
    """A server in a thread of its own."""

    def __init__(self, folder: Path, by_id) -> None:
        self._place = serving.listening(0)
        self.place = self._place.__enter__()
        self.port = self.place.getsockname()[1]
        self.server = serving.server_of(folder, by_id, self.place)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.place]})
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self._place.__exit__(None, None, None)

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def raw(self, sent: bytes) -> bytes:
        """What the server says to these bytes, until it closes."""
        got = b""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection,
            contextlib.suppress(ConnectionError),  # it does not read what it refuses to the end
        ):
            connection.sendall(sent)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                got += piece
        return got
