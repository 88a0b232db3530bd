"""Validates an RO-Crate without a network: ``check_crate.py CRATE`` (make crate).

The validator would fetch the JSON-LD context of RO-Crate 1.1, on which its profile of workflow runs
is based; rocrate 0.13 holds a copy of it. It needs an older rich than the lock: so it runs in an
environment of its own.
"""

import importlib.resources
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import requests
from requests_cache import CachedSession
from urllib3 import HTTPResponse

PROFILE = "workflow-run-crate-0.5"


class Local(requests.adapters.BaseAdapter):
    """Answers every request with one file."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
        headers = {"Content-Type": "application/ld+json"}
        raw = HTTPResponse(io.BytesIO(self.body), headers, status=200, preload_content=False)
        return requests.adapters.HTTPAdapter().build_response(request, raw)

    def close(self) -> None:
        pass


def main(crate: str) -> int:
    """Exit code of the validator."""
    body = (importlib.resources.files("rocrate") / "data/ro-crate.jsonld").read_bytes()
    uri = "https://w3id.org/ro/crate/1.1/context"
    if uri.encode() not in body or uri not in (Path(crate) / "ro-crate-metadata.json").read_text():
        print(f"{crate}: its context is not {uri}, or rocrate holds another", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        with CachedSession(cache, backend="sqlite", expire_after=-1) as session:
            session.mount("https://", Local(body))
            session.get(uri, timeout=10)
        program = Path(sys.executable).with_name("rocrate-validator")
        options = ["--no-paging", "--verbose", "--offline", "--cache-path", cache]
        profile = ["--profile-identifier", PROFILE, "--requirement-severity", "required"]
        command = [str(program), "--no-interactive", "validate", *options, *profile, crate]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
