"""What an operator may set: from the environment or as options; limits agree."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from mrad_service.cli.serve import app
from mrad_service.settings import Settings, is_loopback, mistyped
from pydantic import ValidationError
from typer.testing import CliRunner


def test_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRAD_AUTH", "off")
    monkeypatch.setenv("MRAD_MAX_BATCH", "32")
    monkeypatch.setenv("MRAD_ALLOWED_HOSTS", '["mrad.example"]')
    monkeypatch.setenv("MRAD_BANK_SPECS", '{"a": {"path": "x", "head": "ft"}}')
    settings = Settings(bank=tmp_path)
    assert (settings.max_batch, settings.allowed_hosts) == (32, ("mrad.example",))
    assert settings.bank_specs["a"].head == "ft"
    assert Settings(bank=tmp_path, max_batch=4).max_batch == 4


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="queue_images"):
        Settings(bank=tmp_path, auth="off", queue_images=4, max_batch=8)
    assert [is_loopback(host) for host in ("::1", "127.1.2.3", "localhost", "10.0.0.1", "a.b")] == [
        True, True, True, False, False
    ]  # fmt: skip


def start(*options: object, **environment: str) -> tuple[int, str]:
    """Status and words of a start that fails."""
    done = CliRunner().invoke(app, ["--no-auth", *map(str, options)], env=environment)
    return done.exit_code, done.stderr


def test_what_kubernetes_and_compose_set_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRAD_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("MRAD_MAX_BATCH", "")
    settings = Settings(bank=tmp_path, auth="off")
    assert (settings.port, settings.max_batch) == (8000, 8)
    assert mistyped(["MRAD_BANKS", "MRAD_PORT_8000_TCP", "MRAD_SERVICE_HOST", "HOME"]) == {}
    assert mistyped(["MRAD_COLOUR"]) == {"MRAD_COLOUR": None}


def test_mistyped_settings_end_the_start(tmp_path: Path) -> None:
    bank = ("--bank", tmp_path)
    status, words = start(*bank, MRAD_STRICT_INPTU="1")
    assert (status, words) == (
        2, "error: MRAD_STRICT_INPTU is no setting; do you mean MRAD_STRICT_INPUT?\n"
    )  # fmt: skip
    status, words = start(*bank, MRAD_CORS_ORIGINS="http://a.example")
    assert status == 2
    assert words.startswith("error: MRAD_CORS_ORIGINS is JSON")


def test_what_would_keep_it_unready_ends_the_start(bank_path: Path, tmp_path: Path) -> None:
    bank = ("--bank", bank_path, "--port", 0)
    status, words = start(*bank, "--bank-root", tmp_path / "gone")
    assert (status, "is no folder" in words) == (1, True)
    for content, why in (
        (None, "No such file"),
        ("{", "as `mrad keys add` writes"),
        ("[]", "keys add"),
    ):
        keys = tmp_path / "keys.json"
        if content is not None:
            keys.write_text(content)
        done = CliRunner().invoke(app, [*map(str, bank), "--api-keys-file", str(keys)])
        assert done.exit_code == 1
        assert why in done.stderr
        assert "Error(" not in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, words = start("--bank", bank_path, "--port", other.getsockname()[1])
    assert (status, "cannot be listened on" in words) == (1, True)


def test_without_auth_no_key_file_is_needed(connect, tmp_path: Path) -> None:
    client = connect(auth="off", api_keys_file=tmp_path / "gone.json")
    assert client.get("/health/ready").status_code == 200
