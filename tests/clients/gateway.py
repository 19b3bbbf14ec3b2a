"""Starts the real gateway for a test and ends exactly the process that it started; every wait has a deadline."""

import os
import re
import signal
import subprocess
import threading
import time

START_SECONDS = 30
STOP_SECONDS = 40


class Gateway:
    """One gateway, on a port that the kernel chose unless `--listen` is given, as a context manager."""

    def __init__(self, *args):
        binary = os.environ.get("SHARDGATE_BIN")
        if not binary:
            raise RuntimeError("SHARDGATE_BIN is not set: it names the gateway binary to test")
        self.scheme = "wss" if "--tls-cert" in args else "ws"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDGATE_", "RUST_LOG"))}
        self.process = subprocess.Popen(
            [binary, *([] if "--listen" in args else ["--listen", "127.0.0.1:0"]), *args],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines = []
        self._news = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.port = int(self._wait_for(r"listening on \S*?:(\d+)\b")[1])
            self._wait_for(r"\bReady\b")
        except BaseException:
            self.process.kill()
            raise

    def _read(self):
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def log(self):
        return "".join(self._lines)

    def _wait_for(self, pattern):
        deadline = time.monotonic() + START_SECONDS
        with self._news:
            while not (found := re.search(pattern, self.log)):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise RuntimeError(f"the gateway {'ended' if self._ended else 'took too long'} before it said {pattern!r}:\n{self.log}")
                self._news.wait(left)
        return found

    @property
    def ws(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/ws"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """The exit code."""
        return self.process.wait(STOP_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.process.stdout.close()
