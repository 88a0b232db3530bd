"""Credentials, which are never printed or stored: the one place that takes them out of texts.

Known by their form: user and password in an address (``https://user:password@host``), secret fields
of its query (``?token=...``, signed addresses of object stores), and ``Authorization`` headers.
Known by their value: passwords and tokens of the environment, however a library quotes them.
"""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN = "***"

_NAME = r"password|passwd|passphrase|pwd|token|secret|api[_-]?key|access[_-]?key"
_FIELD = rf"{_NAME}|credential|signature|\bsig|\bkey|\bauth|\bsas|\bjwt|\bcode|\bpolicy"
_HEADER = r"(authorization['\"]?\s*[:=]\s*b?['\"]?(?:\w+ )?)"
_VALUE = r"=[^&#\s'\"<>,;)\]]+"
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A password may hold "/" and "@": everything up to the last "@" of the word is hidden.
    (re.compile(r"://[^\s/:@'\"<>]*:[^\s'\"<>]*@"), f"://{HIDDEN}@"),
    (re.compile(r"//[^\s/?#'\"<>]+@"), f"//{HIDDEN}@"),
    (re.compile(rf"(?i)([?&;#][\w.-]*(?:{_FIELD})[\w.-]*){_VALUE}"), rf"\1={HIDDEN}"),
    (re.compile(rf"(?i)\b([\w.-]*(?:{_NAME})){_VALUE}"), rf"\1={HIDDEN}"),
    (re.compile(rf"(?i){_HEADER}[^\s'\",]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)
_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:password|passwd|passphrase|token|secret|apikey|api_key|access_key|sas)(?:_|$)"
    r"|_pwd$"
)
_NO_SECRET = re.compile(r"(?i)_(?:file|path|dir|url|uri|host|id|expires?|lifetime|type)$")
_PROXY = re.compile(r"(?i)_proxy$")
_SHORTEST = 4
"""Shorter passwords would hide parts of common words; in addresses they are hidden by form."""


def redact(text: object, secrets: frozenset[str] | None = None) -> str:
    """``str(text)`` without credentials; ``secrets``: the known values (None: :func:`secrets_of`).

    Addresses keep scheme, host, port, path and the fields of the query that are no secrets.
    """
    clean = str(text)
    for secret in sorted(secrets_of() if secrets is None else secrets, key=len, reverse=True):
        clean = clean.replace(secret, HIDDEN)
    for form, instead in _FORMS:
        clean = form.sub(instead, clean)
    return clean


def secrets_of(variables: Mapping[str, str] | None = None) -> frozenset[str]:
    """Passwords and tokens in environment variables (None: of this process), also percent-decoded.

    A variable counts by its name (``MLFLOW_TRACKING_TOKEN``), or holds addresses with credentials
    (``MLFLOW_TRACKING_URI``, ``https_proxy``).
    """
    found = set()
    for name, value in (os.environ if variables is None else variables).items():
        if _VARIABLE.search(name) and not _NO_SECRET.search(name):
            found.add(value.strip())
        for word in value.split() if "@" in value else ():
            _, scheme, rest = word.rpartition("://")
            user, _, password = rest.rpartition("@")[0].partition(":")
            if not (scheme or _PROXY.search(name)) or (not password and "/" in user):
                continue
            found.add(password or (user if len(user) >= 2 * _SHORTEST else ""))
    found |= {unquote(secret) for secret in found}
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST)


def split_credentials(address: str) -> tuple[str, str | None]:
    """An HTTP address without its credentials, and these, percent-decoded (``user:password``)."""
    parts = urlsplit(address)
    credentials, separator, host = parts.netloc.rpartition("@")
    if not separator:
        return address, None
    user, _, password = credentials.partition(":")
    return urlunsplit(parts._replace(netloc=host)), f"{unquote(user)}:{unquote(password)}"


class _Redacting:
    """A text stream that hides credentials in whatever is written to it, tracebacks included."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._secrets = stream, secrets_of()

    def write(self, text: str) -> int:
        """Write ``text`` without credentials; returns the length of ``text``."""
        suspect = "@" in text or "=" in text or "uthorization" in text or "Bearer" in text
        shown = text
        if suspect or any(secret in text for secret in self._secrets):
            shown = redact(text, self._secrets)
        try:
            self._stream.write(shown)
        except UnicodeEncodeError as error:
            encoded = shown.encode(error.encoding, "backslashreplace")
            self._stream.write(encoded.decode(error.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """From now on, standard output and error of this process show no credentials.

    Characters that a terminal's encoding lacks are written as escapes instead of raising an error.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacting):
            setattr(sys, name, _Redacting(stream))
