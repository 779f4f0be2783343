from __future__ import annotations

import json

import pytest

from leadre import artifact, progress
from leadre.__main__ import main
from leadre.config import show
from leadre.errors import InputError
from leadre.redact import redact
from leadre.store import open_store


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://ada:secret@cache.example:6379/0", "redis://ada:***@cache.example:6379/0"),
        ("redis://:secret@cache.example", "redis://:***@cache.example"),
        ("rediss://ada:se:c/r@et@cache.example/1", "rediss://ada:***@cache.example/1"),
        ("redis://cache.example:6379/0?password=secret&db=1", "redis://cache.example:6379/0?password=***&db=1"),
        ("postgresql://ada:secret@db.example/x and more", "postgresql://ada:***@db.example/x and more"),
        ("redis://h/0?ssl_password=se%20cret&x=1#a", "redis://h/0?ssl_password=***&x=1#a"),
        ("https://h?x=1&client_secret=secret", "https://h?x=1&client_secret=***"),
        ("https://h?API-Key=secret and more", "https://h?API-Key=*** and more"),
        ("https://h/#access_token=secret", "https://h/#access_token=***"),
        ("https://h?passwd=secret;b", "https://h?passwd=***"),
        ("redis://h?ssl_keyfile=/a/b&keys=1", "redis://h?ssl_keyfile=/a/b&keys=1"),
        ("redis://cache.example:6379/0", "redis://cache.example:6379/0"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("lmdb:state/lists", "lmdb:state/lists"),
        ("a@b.example", "a@b.example"),
    ],
)
def test_password_of_a_url_is_hidden(text, shown):
    assert redact(text) == shown
    assert show(text) == shown


def test_options_are_shown_without_passwords(capsys):
    assert main(["serve", "--store", "redis://ada:secret@cache.example", "--show"]) == 0
    output = capsys.readouterr()
    assert "store = redis://ada:***@cache.example" in output.out
    assert "secret" not in output.out + output.err


def test_artifact_holds_no_password_and_is_current_all_the_same(tmp_path):
    kind = artifact.Kind("test", 1)
    config = {"store": "redis://ada:secret@cache.example", "other": "a@b.example"}
    with artifact.create(tmp_path / "a", kind=kind, config=config, seed=0, parents=[]):
        pass
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert meta["config"] == {"store": "redis://ada:***@cache.example", "other": "a@b.example"}
    assert artifact.current(tmp_path / "a", kind=kind, config=config, seed=0, parents=[])


def test_error_shows_no_password():
    with pytest.raises(InputError) as caught:
        open_store("http://ada:secret@cache.example")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"store": "redis://cache.example?password=secret", "next": 1},
        {
            "stores": ("redis://ada:secret@a.example", "b@c.example"),
            "group": {"url": "https://x.example?api_key=secret"},
        },
    ],
)
def test_artifact_hides_each_text_of_its_config(tmp_path, config):
    """A password ends with its text: the next option of the config is no part of it."""
    kind = artifact.Kind("test", 1)
    with artifact.create(tmp_path / "a", kind=kind, config=config, seed=0, parents=[]):
        pass
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert list(meta["config"]) == list(config) and "secret" not in json.dumps(meta)
    assert meta["config"].get("next") == config.get("next")
    assert meta["config"].get("stores", ["", "b@c.example"])[1] == "b@c.example"
    assert artifact.current(tmp_path / "a", kind=kind, config=config, seed=0, parents=[])


@pytest.mark.parametrize(
    "words",
    [
        ["--workers", "redis://ada:secret@h/0"],
        ["redis://ada:secret@h/0"],
        ["--config", "FILE"],
        ["--proxies", "redis://ada:secret@h/0", "--generate", "false"],
    ],
)
def test_value_in_the_wrong_place_is_reported_without_its_password(tmp_path, capsys, words):
    (tmp_path / "a.toml").write_text('[serve]\nstore = ["redis://ada:secret@h/0"]\n')
    arguments = [str(tmp_path / "a.toml") if word == "FILE" else word for word in words]
    assert main(["serve", "--work", str(tmp_path), *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("leadre: ") and "secret" not in output.out + output.err


def test_line_of_a_log_has_no_password(capsys):
    progress.say("Traceback: redis://ada:secret@cache.example/0 failed; http://127.0.0.1:8080/ answers")
    assert "redis://ada:***@cache.example/0 failed; http://127.0.0.1:8080/ answers" in capsys.readouterr().err
