"""What operators rely on: audit, keys, SIGHUP, proxies, methods, addresses, full disks, turns."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from mrad_service.errors import DeadlineError, QueueFullError
from mrad_service.middleware.auth import KeyFile
from mrad_service.scheduler.lane import Lane
from mrad_service.telemetry.audit import Audit

ENTRIES = "/v1/memory/entries"


def teach(client, png, **headers: str):
    files = {"image": png(3)}
    return client.post(ENTRIES, files=files, data={"label": "normal"}, headers=headers)


def lines_of(path: Path) -> list[tuple[str, int | None]]:
    return [(line["action"], line["status"]) for line in map(json.loads, path.open())]


# -- audit, keys -----------------------------------------------------------------------------------


def test_nothing_is_changed_that_cannot_be_audited(connect, png) -> None:
    client = connect(audit_file=Path("/dev/full"))
    before = client.get(ENTRIES).json()["total"]
    answer = teach(client, png)
    assert (answer.status_code, answer.json()["code"]) == (503, "audit_unwritable")
    assert client.get(ENTRIES).json()["total"] == before
    assert client.get("/health/ready").status_code == 503
    assert "mrad_audit_failures_total 2" in client.get("/metrics").text
    assert client.post("/v1/score", files={"images": png(1)}).status_code == 200
    open_one = connect(audit_file=Path("/dev/full"), audit_closed=False, writable=False)
    assert open_one.delete(f"{ENTRIES}/x").status_code == 403  # read-only says so: it got that far
    assert open_one.get("/health/ready").status_code == 200


def test_logrotate_loses_no_line(connect, png, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    client = connect(audit_file=log)
    assert teach(client, png).status_code == 201
    log.rename(tmp_path / "audit.1")
    assert teach(client, png).status_code == 201
    log.rename(tmp_path / "audit.2")
    client.app.state.runtime.reload()
    assert log.exists()
    for name in ("audit.1", "audit.jsonl"):
        path = tmp_path / name
        if name == "audit.1":
            assert lines_of(path) == [(f"POST {ENTRIES}", None), (f"POST {ENTRIES}", 201)]
    assert len(lines_of(tmp_path / "audit.2")) == 2


def test_an_audit_file_that_is_well_again_opens_the_door(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.why = "was full"
    assert audit.why_not_ready() == "the audit file cannot be written: was full"
    scope = {"method": "POST", "path": "/v1/memory/entries", "state": {"request_id": "r"}}
    audit.begin(scope)
    assert audit.why_not_ready() == ""


def test_keys_that_cannot_be_read_stay_in_force_and_the_server_says_so(connect, tmp_path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = {"Authorization": f"Bearer {keys.add('a', ('admin',))}"}
    client = connect(auth="keys", api_keys_file=keys.path)
    assert client.get("/v1/bank", headers=key).status_code == 200
    whole = keys.path.read_bytes()
    keys.path.write_bytes(whole[:50])
    assert client.get("/v1/bank", headers=key).status_code == 200
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "keys.json cannot be read" in answer.json()["detail"]
    keys.path.write_bytes(whole)
    assert client.get("/health/ready").status_code == 200


# -- proxies, methods, addresses -------------------------------------------------------------------


def test_only_configured_proxies_are_believed(connect, png, tmp_path) -> None:
    for trusted, seen in (((), "testclient"), (("10.0.0.0/8",), "testclient")):
        log = tmp_path / f"{len(trusted)}.jsonl"
        client = connect(audit_file=log, trusted_proxies=trusted, writable=not trusted)
        client.delete(f"{ENTRIES}/x", headers={"X-Forwarded-For": "203.0.113.9"})
        assert json.loads(log.read_text().splitlines()[-1])["client"] == seen


def test_a_trusted_proxy_says_who_the_client_is(make_app, serve, tmp_path) -> None:
    import httpx

    log = tmp_path / "audit.jsonl"
    app = make_app(audit_file=log, trusted_proxies=("127.0.0.1",))
    with serve(app, proxy_headers=False) as url:
        forwarded = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
        httpx.delete(f"{url}{ENTRIES}/x", headers=forwarded)
    assert json.loads(log.read_text().splitlines()[-1])["client"] == "203.0.113.9"


def test_head_is_where_get_is(client, png) -> None:
    for path in ("/", "/health/live", "/v1/bank", "/metrics", "/openapi.json", ENTRIES, "/v2"):
        there, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (there.status_code, b""), path
        assert head.headers["content-type"] == there.headers["content-type"]
    assert client.head("/nothing").status_code == 404


def test_allow_names_every_method(client) -> None:
    for method, path, allowed in (
        ("PUT", ENTRIES, "GET, HEAD, OPTIONS, POST"),
        ("POST", f"{ENTRIES}/x", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", "/v1/score", "OPTIONS, POST"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    asked = client.options("/v1/score")
    assert (asked.status_code, asked.headers["allow"]) == (204, "OPTIONS, POST")


def test_no_redirect_leads_to_the_host_that_the_caller_says(connect) -> None:
    client = connect(allowed_hosts=("evil.example", "127.0.0.1"), root_path="/inspection")
    for path in ("/v1/bank/", "/inspection/v1/bank/", "/v1/memory/entries/"):
        answer = client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
        assert answer.status_code == 404
    answer = client.get("/inspection", headers={"Host": "evil.example"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/inspection/")


@pytest.mark.parametrize("prefix", ["", "/inspection"])
def test_behind_a_proxy_with_a_prefix(connect, png, tmp_path, prefix: str) -> None:
    log = tmp_path / "audit.jsonl"
    client = connect(root_path="/inspection", audit_file=log)
    files = {"image": png(3)}
    added = client.post(f"{prefix}{ENTRIES}", files=files, data={"label": "normal"}).json()
    address = added["entry"]["thumbnail"]
    assert address.startswith("/inspection/v1/memory/")
    assert client.get(address).headers["content-type"] == "image/jpeg"
    assert len(lines_of(log)) == 2, "audited, whether the prefix was stripped or not"
    assert client.post(f"{prefix}/v1/bank", content=bytes(100_000)).status_code == 405
    assert "application/problem+json" in client.get(f"{prefix}/v2/x").headers["content-type"]
    assert client.get(f"{prefix}/").status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_starts_nothing(connect, site: str) -> None:
    client = connect(cors_origins=("https://mes.example",))
    elsewhere = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    for path in ("/v1/memory/export", "/v1/bank", ENTRIES):
        answer = client.get(path, headers=elsewhere)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    assert client.get("/", headers=elsewhere).status_code == 200
    named = elsewhere | {"Origin": "https://mes.example"}
    assert client.get("/v1/bank", headers=named).status_code == 200


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "storage_full"), (errno.EACCES, 503, "storage_failed")],
)
def test_a_full_folder_for_temporary_files_is_the_servers(
    connect, png, monkeypatch, number: int, status: int, code: str
) -> None:
    client = connect()

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", fail)
    answer = teach(client, png)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "retry-after" in answer.headers


# -- turns -----------------------------------------------------------------------------------------


def test_a_lane_is_bounded_fair_and_has_deadlines() -> None:
    lane, order, gate = Lane("lessons", 2), [], threading.Event()

    def work(name: str) -> None:
        with lane.turn(time.monotonic() + 60):
            order.append(name)
            gate.wait(60)

    threads = []
    for name in ("a", "b", "c"):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        while len(lane._line) < len(threads):
            time.sleep(0.001)
    with pytest.raises(QueueFullError) as refused, lane.turn(time.monotonic() + 60):
        pass
    assert refused.value.retry_after > 0
    gate.set()
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c"]
    gate.clear()
    holder = threading.Thread(target=work, args=("d",))
    holder.start()
    while order[-1] != "d":
        time.sleep(0.001)
    with pytest.raises(DeadlineError), lane.turn(time.monotonic() + 0.01):
        pass
    gate.set()
    holder.join()


def test_lessons_have_deadlines_and_a_queue(connect, png) -> None:
    client = connect(max_lessons=0)
    runtime = client.app.state.runtime
    before = client.get(ENTRIES).json()["total"]
    late = teach(client, png, **{"X-Request-Timeout": "0.0001"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    with runtime.lessons.turn(time.monotonic() + 60):
        full = teach(client, png)
        assert (full.status_code, full.json()["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
    with runtime.copies.turn(time.monotonic() + 60):
        waits = client.get("/v1/memory/export", headers={"X-Request-Timeout": "0.05"})
        assert waits.status_code == 504
    assert client.get(ENTRIES).json()["total"] == before
    assert teach(client, png).status_code == 201
    assert client.get("/v1/memory/export").status_code == 200
    assert runtime.batcher.pixels.held == 0
