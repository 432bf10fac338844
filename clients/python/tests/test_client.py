"""The client against a scripted server."""

from __future__ import annotations

import base64
import inspect
import io
import json

import anyio
import httpx
import mrad_client
import numpy as np
import pytest
from mrad_client import AsyncClient, Client, Retry
from scripted import Script, field, ok_results, png16, problem


def test_results_come_in_order_with_the_options_sent() -> None:
    server = Script(ok_results)
    scores = server.client().score([b"\xff", b"\x00"], threshold=0.4, evidence=2, fields=["score"])
    assert [result.score for result in scores] == [1.0, 0.0]
    request = server.requests[0]
    assert request.url.path == "/v1/score"
    assert field(request, "threshold") == [b"0.4"]
    assert field(request, "evidence") == [b"2"]
    assert field(request, "fields") == [b"score"]
    assert field(request, "target_fpr") == []
    assert request.headers["authorization"] == "Bearer key"


def test_maps_are_decoded_on_first_use_and_once() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    server = Script(lambda request: ok_results(request, map=png16(values)))
    result = server.client().score_image(b"x", map="png16")
    assert result.anomaly_map.dtype == np.float32
    assert np.abs(result.anomaly_map - values).max() < 1 / 65535
    assert result.anomaly_map is result.anomaly_map


def test_regions_and_parts_are_sent_as_json() -> None:
    server = Script(ok_results)
    parts = {"size": [20, 10], "parts": {"lid": {"box": [0, 0, 5, 5]}}}
    roi = {"size": [20, 10], "box": [0, 0, 10, 10]}
    server.client().score([b"x"], roi=roi, parts=parts)
    (sent,), (region,) = (field(server.requests[0], name) for name in ("parts", "roi"))
    assert json.loads(sent) == parts
    assert json.loads(region) == roi


def test_npy_maps_never_unpickle() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    evil = {"format": "npy", "data": base64.b64encode(buffer.getvalue()).decode()}
    server = Script(lambda request: ok_results(request, map=evil))
    with pytest.raises(ValueError, match="allow_pickle"):
        _ = server.client().score_image(b"x", map="npy").anomaly_map


def test_a_map_that_was_not_asked_for_says_how() -> None:
    with pytest.raises(ValueError, match="png16"):
        _ = Script(ok_results).client().score_image(b"x").anomaly_map


def test_one_bad_image_spoils_its_own_result_only() -> None:
    bad = {"index": 1, "name": "b", "status": "error", "problem": {"code": "invalid_image", "status": 422, "detail": "not an image"}}  # fmt: skip
    good = {"index": 0, "name": "a", "status": "ok", "score": 0.1}
    server = Script(httpx.Response(200, json={"results": [good, bad]}))
    scores = server.client().score([b"a", b"b"])
    assert scores[0].ok
    assert isinstance(scores[1].error, mrad_client.ImageError)
    with pytest.raises(mrad_client.ImageError, match="not an image"):
        scores[1].raise_for_error()


def test_a_path_that_cannot_be_read_spoils_its_own_result_only(tmp_path) -> None:
    (tmp_path / "good.png").write_bytes(b"\x80")
    paths = [tmp_path / "gone.png", tmp_path / "good.png", str(tmp_path), tmp_path / "good.png"]
    server = Script(ok_results)
    scores = server.client().score(paths)
    assert [result.status for result in scores] == ["error", "ok", "error", "ok"]
    assert [result.index for result in scores] == [0, 1, 2, 3]
    assert [result.score for result in scores] == [None, 128 / 255, None, 128 / 255]
    assert len(field(server.requests[0], "images")) == 2
    assert scores[0].name == "gone.png"
    assert isinstance(scores[0].error, mrad_client.UnreadableFileError)
    with pytest.raises(mrad_client.InputError, match="cannot be read"):
        scores[2].raise_for_error()


def test_where_no_path_can_be_read_nobody_is_asked(tmp_path) -> None:
    server = Script(ok_results)
    client = server.client()
    assert [result.ok for result in client.score([tmp_path / "a", tmp_path / "b"])] == [
        False,
        False,
    ]
    with pytest.raises(mrad_client.UnreadableFileError, match=r"a\.png cannot be read"):
        client.score_image(tmp_path / "a.png")
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_mask", mrad_client.MaskError),
        (401, "unauthorized", mrad_client.AuthenticationError),
        (403, "forbidden", mrad_client.ForbiddenError),
        (404, "entry_not_found", mrad_client.NotFoundError),
        (409, "idempotency_conflict", mrad_client.ConflictError),
        (413, "body_too_large", mrad_client.TooLargeError),
        (422, "one_class_memory", mrad_client.InvalidRequestError),
        (429, "queue_full", mrad_client.OverloadedError),
        (500, "internal", mrad_client.ServerError),
        (503, "draining", mrad_client.UnavailableError),
    ],
)
def test_errors_mirror_the_servers(status: int, code: str, kind: type[Exception]) -> None:
    client = Script(problem(status, code, {"retry-after": "99"})).client()
    with pytest.raises(kind) as caught:
        client.bank()
    error = caught.value
    assert isinstance(error, mrad_client.APIError)
    assert (error.status, error.code, error.request_id) == (status, code, "r-1")
    assert error.retry_after == 99


def test_overload_is_waited_out() -> None:
    server = Script(problem(429, "queue_full", {"retry-after": "3"}), problem(503, "x"), ok_results)
    assert server.client().score([b"a"])[0].ok
    assert len(server.requests) == 3
    assert 3 <= server.waits[0] <= 3.5
    bodies = {request.content.count(b"\r\n") for request in server.requests}
    assert len(bodies) == 1  # the upload was sent whole each time


def test_it_ends_when_the_tries_are_spent() -> None:
    server = Script(httpx.ConnectError("refused"))
    with pytest.raises(mrad_client.ConnectionFailedError, match="after 4 tries"):
        server.client().bank()
    assert len(server.requests) == 4


def test_timeouts_are_told_apart() -> None:
    with pytest.raises(mrad_client.TimedOutError):
        Script(httpx.ReadTimeout("slow")).client().bank()


def test_a_retried_write_keeps_its_key_and_the_next_gets_another() -> None:
    entry = httpx.Response(
        201,
        json={
            "entry": {"entry_id": "e1", "label": "anomalous"},
            "repeated": False,
            "entries": 7,
            "note": "the mask is thin",
        },
    )
    server = Script(httpx.ReadError("cut"), entry)
    client = server.client()
    added = client.add_entry(b"img", "anomalous", mask=np.ones((2, 2), bool), tags=["a", "b"])
    assert (added.entry_id, added.note) == ("e1", "the mask is thin")
    client.add_entry(b"img", "anomalous")
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys[0] == keys[1] != keys[2]
    assert len(field(server.requests[0], "mask")) == 1


def test_a_delete_whose_answer_was_lost_is_done() -> None:
    Script(httpx.ReadError("cut"), problem(404, "entry_not_found")).client().remove_entry("e")
    with pytest.raises(mrad_client.NotFoundError):
        Script(problem(404, "entry_not_found")).client().remove_entry("e")


def test_names_cannot_leave_their_path() -> None:
    server = Script(httpx.Response(200, json={}))
    server.client().activate_bank("../../admin?x")
    assert server.requests[0].url.raw_path == b"/v1/banks/..%2F..%2Fadmin%3Fx/activate"


def test_entries_walks_all_pages() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        entry = {"entry_id": "a" if first else "b", "label": "normal"}
        return httpx.Response(200, json={"entries": [entry], "next_cursor": "a" if first else None})

    assert [entry.entry_id for entry in Script(page).client().entries()] == ["a", "b"]


@pytest.mark.parametrize("said", ["2", "v2.1", "x"])
def test_another_api_version_is_refused(said: str) -> None:
    server = Script(httpx.Response(200, json={}, headers={"X-MRAD-API-Version": said}))
    with pytest.raises(mrad_client.VersionError, match="this client 1"):
        server.client().bank()


@pytest.mark.parametrize("body", ["<html>proxy</html>", "[]", '{"results": [{"index": 0}]}'])
def test_a_strangers_answer_is_named_so(body: str) -> None:
    server = Script(httpx.Response(200, text=body))
    with pytest.raises(mrad_client.UnexpectedResponseError):
        server.client().score([b"x"])


def test_fewer_results_than_images_is_an_error() -> None:
    server = Script(httpx.Response(200, json={"results": []}))
    with pytest.raises(
        mrad_client.UnexpectedResponseError, match="images sent: 1, results that came: 0"
    ):
        server.client().score([b"x"])


def test_a_proxys_503_page_is_tried_again_like_the_servers() -> None:
    server = Script(httpx.Response(502, text="<html>"), ok_results)
    assert server.client().score([b"x"])[0].ok


def test_redirects_do_not_carry_the_key_away() -> None:
    server = Script(httpx.Response(302, headers={"location": "http://elsewhere/"}))
    with pytest.raises(mrad_client.UnexpectedResponseError):
        server.client().bank()
    assert len(server.requests) == 1


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRAD_URL", "http://from-env:9")
    monkeypatch.setenv("MRAD_API_KEY", "secret")
    server = Script(httpx.Response(200, json={"name": "b"}))
    assert Client(transport=httpx.MockTransport(server)).bank().name == "b"
    assert server.requests[0].url.host == "from-env"
    assert server.requests[0].headers["authorization"] == "Bearer secret"


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Client("localhost:8000")


def test_one_image_is_not_a_list_of_images() -> None:
    with pytest.raises(TypeError, match="score_image"):
        Script(ok_results).client().score("a.png")
    with pytest.raises(ValueError, match="no image"):
        Script(ok_results).client().score([])


def test_the_twins_have_the_same_methods_and_parameters() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in methods
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)
    assert len(surface(Client)) >= 8


@pytest.mark.parametrize("backend", ["asyncio"])
def test_the_async_twin_does_the_same(backend: str) -> None:
    server = Script(problem(429, "queue_full", {"retry-after": "1"}), ok_results)

    async def sleep(seconds: float) -> None:
        server.waits.append(seconds)

    async def main() -> None:
        transport = httpx.MockTransport(server)
        async with AsyncClient("http://s", transport=transport, sleep=sleep) as client:
            assert (await client.score([b"\xff"]))[0].score == 1.0
            server.answers = [
                httpx.Response(200, json={"entry": {"entry_id": "e", "label": "anomalous"}})
            ]
            assert (await client.add_entry(b"x", "anomalous")).entry_id == "e"
            server.answers = [httpx.ConnectError("gone")]
            with pytest.raises(mrad_client.ConnectionFailedError):
                await client.bank()

    anyio.run(main, backend=backend)
    assert server.waits[0] >= 1


def test_answers_may_grow() -> None:
    body = {"results": [{"index": 0, "status": "ok", "score": 0.5, "new": 1}], "also_new": {}}
    result = Script(httpx.Response(200, text=json.dumps(body))).client().score_image(b"x")
    assert result.score == 0.5


def test_no_retry_means_none() -> None:
    server = Script(problem(503, "draining"))
    with pytest.raises(mrad_client.UnavailableError):
        server.client(retry=Retry(attempts=1)).bank()
    assert len(server.requests) == 1


def test_readiness_is_an_answer_and_no_server_is_an_error() -> None:
    assert Script(httpx.Response(200, json={})).client().ready()
    starting = Script(problem(503, "starting"))
    assert not starting.client().ready()
    assert len(starting.requests) == 1
    with pytest.raises(mrad_client.ConnectionFailedError):
        Script(httpx.ConnectError("refused")).client().ready()


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("host", "proxied"),
    [
        ("127.0.0.1:8000", False),
        ("localhost", False),
        ("[::1]:8000", False),
        ("127.9.9.9", False),
        ("example.com", True),
        ("[2001:db8::1]:8000", True),
    ],
)
def test_no_proxy_stands_before_this_machine_itself(
    client, host: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    http = client(f"http://{host}")._http
    taken = http._transport_for_url(httpx.URL(f"http://{host}/v1/score"))
    assert (taken is not http._transport) == proxied


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over real sockets: the proxy would answer with an error."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(418 if self.path.startswith("http://") else 200)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HTTP_PROXY", url)
        with Client(url) as client:
            assert client.ready()
        server.shutdown()
