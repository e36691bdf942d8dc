"""`labkit serve` as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["SERVE", "Served", "served"]

SERVE = [sys.executable, "-m", "labkit.cli", "serve", "--kubernetes", "off", "--port", "0"]


class Served:
    """A process that serves, and where."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *arguments], stderr=subprocess.PIPE, text=True, env=os.environ | (env or {})
        )
        assert self.process.stderr is not None
        said = ""
        self.url = ""
        for line in self.process.stderr:
            said += line
            if match := re.search(r"ready: (http://\S+)/metrics", line):
                self.url = match[1]
                break
        assert self.url, said

    def get(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def value(self, sample: str) -> float:
        found = [
            one.value
            for family in text_string_to_metric_families(self.get())
            for one in family.samples
            if one.name == sample
        ]
        return float(found[0])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[Served]:
    running = Served(*arguments)
    try:
        yield running
    finally:
        running.close()
