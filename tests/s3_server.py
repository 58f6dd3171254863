"""An S3-compatible service as a child process: moto's server, made to keep the one promise that everything rests on.

moto looks whether an object exists and writes it in two steps, and runs requests in threads; S3 does both in one. So this
server takes one request at a time.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

START_S_MAX = 60.0
STOP_S_MAX = 10.0
READY = re.compile(r"ready at 127\.0\.0\.1:(\d+)")


class S3Server:
    """A running server. It ends with the process that started it, however that ends."""

    def __init__(self, log: Path) -> None:
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.s3_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=Path(__file__).parents[1],
            )
        self.port = self._wait_until_ready(log)
        self.url = f"http://127.0.0.1:{self.port}"

    def create_bucket(self) -> str:
        """A new bucket of a name of its own."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S_MAX)
        try:
            connection.request("PUT", f"/{name}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
        finally:
            connection.close()
        return name

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(STOP_S_MAX)
        self._process.stdout.close()

    def _wait_until_ready(self, log: Path) -> int:
        deadline_s = time.monotonic() + START_S_MAX
        assert self._process.stdout is not None
        while True:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0, deadline_s - time.monotonic()))
            line = self._process.stdout.readline() if readable else ""
            match = READY.search(line)
            if match:
                return int(match[1])
            if not line:
                self._process.kill()
                raise AssertionError(f"the S3 server did not become ready; its log:\n{log.read_text()[-4000:]}")


def main() -> None:
    """Serve on a free port until standard input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def application(environ, start_response):
        with one_at_a_time:
            return moto(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready at 127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
