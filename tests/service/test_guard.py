"""Who comes in: keys and scopes, hosts, origins; what is logged of writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mrad_indexer.cli.main import app
from mrad_service.middleware.access import hostname
from mrad_service.middleware.auth import KeyFile, KeysFileError
from mrad_service.settings import Settings
from pydantic import ValidationError
from typer.testing import CliRunner


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_lie_hashed_and_only_the_right_one_opens(keys: KeyFile) -> None:
    key = keys.add("line-3", ("score",))
    text = keys.path.read_text()
    assert key.split("_", 2)[2] not in text
    assert keys.path.stat().st_mode & 0o077 == 0
    assert keys.find(key).name == "line-3"
    for wrong in (key[:-1], key + "x", "", "mrad_", "mrad_00000000_x", "ü" * 99):
        assert keys.find(wrong) is None
    with pytest.raises(KeysFileError, match="there is a key named"):
        keys.add("line-3", ("score",))
    with pytest.raises(KeysFileError, match="scopes"):
        keys.add("other", ("everything",))


def test_a_key_file_that_cannot_be_read_leaves_the_old_keys_and_readiness_says_so(
    connect, keys: KeyFile, png
) -> None:
    headers = {"Authorization": f"Bearer {keys.add('a', ('score',))}"}
    client = connect(auth="keys", api_keys_file=keys.path)
    assert client.get("/v1/bank", headers=headers).status_code == 200
    whole = keys.path.read_bytes()
    for damage in (b"{", b"", None):
        keys.path.unlink() if damage is None else keys.path.write_bytes(damage)
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "keys.json" in ready.json()["detail"]
        assert client.get("/v1/bank", headers=headers).status_code == 200, "the old ones hold"
        stranger = {"Authorization": "Bearer mrad_00000000_x"}
        assert client.get("/v1/bank", headers=stranger).status_code == 401
    keys.path.write_bytes(whole)
    assert client.get("/health/ready").status_code == 200


def test_no_key_file_at_all_is_said_and_lets_nobody_in(connect, tmp_path: Path) -> None:
    client = connect(auth="keys", api_keys_file=tmp_path / "none.json")
    assert client.get("/health/ready").status_code == 503
    answer = client.get("/v1/bank", headers={"Authorization": "Bearer mrad_00000000_x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "keys_file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_that_root_adds_leaves_the_file_to_the_server(keys: KeyFile) -> None:
    keys.add("a", ("score",))
    os.chown(keys.path, 65534, 65534)
    keys.path.chmod(0o640)
    keys.add("b", ("score",))
    facts = keys.path.stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (65534, 65534, 0o640)


def test_a_revoked_key_is_refused_at_once(connect, keys: KeyFile, png) -> None:
    key = keys.add("a", ("score",))
    client = connect(auth="keys", api_keys_file=keys.path)
    assert client.get("/v1/bank", headers=bearer(key)).status_code == 200
    KeyFile(keys.path).revoke("a")
    answer = client.get("/v1/bank", headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "Bearer" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("score", {"score"}), ("write", {"score", "write"}), ("admin", {"score", "write", "admin"})],
)
def test_scopes(connect, keys: KeyFile, scope: str, allowed: set[str]) -> None:
    key = keys.add("a", (scope,))
    client = connect(auth="keys", api_keys_file=keys.path)
    asked = {
        "score": client.get("/v1/bank", headers=bearer(key)),
        "write": client.delete("/v1/memory/entries/none", headers=bearer(key)),
        "admin": client.post("/v1/banks/none/activate", headers=bearer(key)),
    }
    refused = {name for name, answer in asked.items() if answer.status_code == 403}
    assert refused == set(asked) - allowed
    assert all(asked[name].json()["code"] == "forbidden" for name in refused)


def test_without_a_key_no_body_is_read_but_health_answers(connect, keys: KeyFile) -> None:
    keys.add("a", ("admin",))
    client = connect(auth="keys", api_keys_file=keys.path)
    for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200, path

    def body():
        raise AssertionError("the body was read")
        yield b""

    for method, path in (("POST", "/v1/score"), ("POST", "/v1/memory/entries"), ("GET", "/v1/x")):
        content = body() if method == "POST" else None
        answer = client.request(method, path, content=content, headers={"x": "y"})
        assert answer.status_code == 401, path


def test_settings_refuse_an_open_door(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="loopback"):
        Settings(bank=tmp_path, auth="off", host="0.0.0.0")
    with pytest.raises(ValidationError, match="mrad keys add"):
        Settings(bank=tmp_path)


def test_hosts_and_origins(connect, png) -> None:
    client = connect()
    refused = client.get("/v1/bank", headers={"Host": "evil.example"})
    assert refused.status_code == 422
    assert client.get("/v1/bank", headers={"Host": "localhost:8000"}).status_code == 200
    elsewhere = {"Origin": "https://evil.example"}
    files = {"images": png(1)}
    crossed = client.post("/v1/score", files=files, headers=elsewhere)
    assert (crossed.status_code, crossed.json()["code"]) == (403, "cross_origin")
    same = client.post("/v1/score", files=files, headers={"Origin": "http://127.0.0.1"})
    assert same.status_code == 200
    assert "access-control-allow-origin" not in crossed.headers
    assert [hostname(h) for h in ("[::1]:80", "a:1", "", "[", "a@b")] == ["::1", "a", "", "", "b"]


def test_cors_only_for_those_named(connect) -> None:
    client = connect(cors_origins=("https://mes.example",))
    asked = {"Origin": "https://mes.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options("/v1/score", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "https://mes.example"
    other = client.options("/v1/score", headers=asked | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_every_answer_has_the_headers(client) -> None:
    for path in ("/health/live", "/nothing", "/v1/bank"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-mrad-api-version"] == "1"
    assert client.get("/v1/bank", headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"
    odd = client.get("/v1/bank", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]
    assert odd != "a b\tc"


def test_writes_are_audited_with_who_and_what(connect, keys: KeyFile, png, tmp_path) -> None:
    key = keys.add("teacher", ("write",))
    log = tmp_path / "audit.jsonl"
    client = connect(auth="keys", api_keys_file=keys.path, audit_file=log)
    files = {"image": png(3)}
    added = client.post(
        "/v1/memory/entries", files=files, data={"label": "normal"}, headers=bearer(key)
    )
    assert added.status_code == 201, added.text
    assert added.json()["entry"]["added_by"] == "teacher"
    client.get("/v1/memory/entries", headers=bearer(key))
    client.get("/v1/memory/export", headers=bearer(key))
    client.delete("/v1/memory/entries/x")
    begun = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in begun if line["status"] is not None]
    assert len(begun) == 2 * len(lines), "each is written down before it is done, too"
    assert [(line["key"], line["status"]) for line in lines] == [
        ("teacher", 201), ("teacher", 403), (None, 401)
    ]  # fmt: skip
    assert lines[0]["entry_id"] == added.json()["entry"]["entry_id"]
    assert lines[0]["request_id"] == added.headers["x-request-id"]


def test_the_keys_command(tmp_path: Path) -> None:
    file = str(tmp_path / "k.json")
    run = CliRunner().invoke
    made = run(app, ["keys", "add", "a", "--file", file, "--scope", "score", "--scope", "write"])
    assert KeyFile(Path(file)).find(made.stdout.split()[0]).scopes == ("score", "write")
    assert "score,write" in run(app, ["keys", "list", "--file", file]).stdout
    assert run(app, ["keys", "revoke", "a", "--file", file]).exit_code == 0
    assert "revoked" in run(app, ["keys", "list", "--file", file]).stdout
    assert run(app, ["keys", "revoke", "a", "--file", file]).exit_code == 2
    assert run(app, ["keys", "add", "b c", "--file", file]).exit_code == 2
