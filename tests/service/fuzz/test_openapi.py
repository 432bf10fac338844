"""Requests made from the OpenAPI description: no 5xx, and answers that keep to it."""

from __future__ import annotations

import urllib.request

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

load_all_checks()
UPLOADS = ("/v1/score", "/v1/memory/entries", "/infer")
"""Where a description cannot say what is accepted: that bytes are an image, that options agree."""


def check(case: schemathesis.Case) -> None:
    """Send it and look at the answer; whatever is an error is a problem document."""
    response = case.call(timeout=120)
    excluded = [positive_data_acceptance] if case.path.endswith(UPLOADS) else []
    asked_for_less = "X-Request-Timeout" in (case.headers or {})
    if asked_for_less and response.status_code == 504:  # a few microseconds, say: as it wished
        assert response.json()["code"] == "deadline_exceeded"
        excluded.append(not_a_server_error)
    case.validate_response(response, checks=CHECKS.get_all(), excluded_checks=excluded)
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"], case
        body = response.json()
        assert body["status"] == response.status_code
        assert body["code"]
        assert body["detail"]


def ask_everything(url: str, examples: int) -> None:
    """So many requests of every operation that the description names."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"/v1/score", "/v1/memory/entries", "/v1/bank"} <= {one.path for one in operations}
    moderate = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:

        @moderate
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            check(case)

        ask()
    with urllib.request.urlopen(f"{url}/health/ready") as answer:
        assert answer.status == 200
    print(f"{len(operations)} operations, up to {examples} requests each: no 5xx")


def test_a_few_requests_of_every_operation(make_app, serve):
    with serve(make_app()) as url:
        ask_everything(url, 6)


@pytest.mark.nightly
def test_300_requests_of_every_operation(make_app, serve):
    with serve(make_app()) as url:
        ask_everything(url, 300)
