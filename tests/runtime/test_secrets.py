"""Credentials leave no address, header or environment variable, in whatever text they come."""

import io
import sys

import pytest

from possam.runtime.secrets import guard_output, redact, secrets_of, split_credentials

NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://user:geheim@server:5000/a: refused", "http://***@server:5000/a: refused"),
        ("'https://ghp_token@github.com/o/r.git'", "'https://***@github.com/o/r.git'"),
        ("postgresql+psycopg2://u:p/a@s#s?@h:5432/db", "postgresql+psycopg2://***@h:5432/db"),
        ("https://u:p%40ss%2F@h/x?download=1", "https://***@h/x?download=1"),
        ("to h://a:b@c and h://d:e@f.", "to h://***@c and h://***@f."),
        (
            "https://s3/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab&versionId=3",
            "https://s3/x?X-Amz-Credential=***&X-Amz-Signature=***&versionId=3",
        ),
        ("a.zip?sv=1&sig=a%3D&raw=true", "a.zip?sv=1&sig=***&raw=true"),
        ("h://x/y#access_token=abc", "h://x/y#access_token=***"),
        ("host=db password=geheim dbname=x", "host=db password=*** dbname=x"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': 'Basic ***'}"),
        ("Authorization: Bearer eyJhbGciOi.x-y", "Authorization: Bearer ***"),
    ],
)
def test_credentials_are_hidden_by_their_form(text: str, clean: str) -> None:
    assert redact(text, NONE) == clean
    assert redact(clean, NONE) == clean


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://server:5000/#/experiments/1",
        "https://cdn/npm/@scope/file",
        "git@github.com:owner/repo.git",
        "loss=0.5, keyword=3, token_ids=4, design=2",
        "photograph a@b.png: no such file",
    ],
)
def test_texts_without_credentials_stay(text: str) -> None:
    assert redact(text, NONE) == text


def test_the_environment_s_secrets_are_known_however_they_are_quoted() -> None:
    known = secrets_of(
        {
            "MLFLOW_TRACKING_URI": "http://user:p%40ss@h",
            "https_proxy": "u:proxy1@proxy:3128",
            "PIP_EXTRA_INDEX_URL": "https://u:first1@h/s https://u:second2@h/s",
            "MLFLOW_TRACKING_TOKEN": "tok123",
            "REMOTE": "https://ghp_long_token@h/x",
            "AWS_SECRET_ACCESS_KEY": "aws-secret",
            "TOKENIZERS_PARALLELISM": "false",
            "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token",
            "PWD": "/home/user",
            "MAIL": "user@example.org",
        }
    )
    assert known == {
        *("p%40ss", "p@ss", "proxy1", "first1", "second2", "tok123", "ghp_long_token"),
        "aws-secret",
    }
    assert redact("invalid port: 'p@ss'", known) == "invalid port: '***'"


def test_credentials_of_an_address_are_decoded() -> None:
    assert split_credentials("https://u:p%40@h:8/x?y=1") == ("https://h:8/x?y=1", "u:p@")
    assert split_credentials("https://h/@x") == ("https://h/@x", None)


def test_whatever_is_printed_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks and libraries' logs too; a character that the terminal lacks is escaped."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="latin-1"))
    guard_output()
    guard_output()
    print("it is geheim, at http://u:other@h, → there", flush=True)
    sys.stderr.writelines(["token=", "x token=abc\n"])
    sys.stderr.flush()
    assert raw.getvalue() == b"it is ***, at http://***@h, \\u2192 there\ntoken=x token=***\n"
