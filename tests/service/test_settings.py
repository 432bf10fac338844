"""What an operator may set: from the environment or as options; limits agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from mrad_service.settings import Settings, is_loopback
from pydantic import ValidationError


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
