"""`GET /v1/jobs/{id}/report` as a page: chosen by the request, whole in one file, allowed by hash."""

import base64
import hashlib
import re

import pytest

from schemas.report_page import report_page
from service.report_template import report_policy, report_template
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

ELEMENT = re.compile(r"<(script|style)(?: [^>]*)?>(.*?)</\1>", re.DOTALL)


@pytest.fixture
def report(service):
    job = service.submit(service.stored(checkpoint_bytes())).json()["id"]
    service.finish(job, {"model.safetensors": checkpoint_bytes()})
    return f"/v1/jobs/{job}/report"


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "*/*", "application/json"),
        ("", "text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("?format=html", "*/*", "text/html; charset=utf-8"),
        ("?format=html", "application/json", "text/html; charset=utf-8"),
        ("?format=json", "text/html", "application/json"),
    ],
)
def test_the_request_chooses_the_format(service, report, query, accept, kind):
    answer = service.http.get(f"{report}{query}", headers={"Accept": accept})

    assert answer.headers["content-type"] == kind
    assert answer.headers["vary"] == "Accept"
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_an_unknown_format_is_refused(service, report):
    assert_problem(service.http.get(f"{report}?format=xml"), 422, "invalid-request")


def test_the_page_is_the_template_with_the_report(service, report):
    page = service.http.get(f"{report}?format=html").text

    assert page == report_page(report_template(), service.http.get(report).json())


@pytest.mark.parametrize("query", ["", "?format=html"])
def test_what_the_client_has_is_not_sent_again(service, report, query):
    first = service.http.get(f"{report}{query}")
    again = service.http.get(f"{report}{query}", headers={"If-None-Match": first.headers["etag"]})

    assert (again.status_code, again.content) == (304, b"")
    assert (again.headers["etag"], again.headers["vary"]) == (first.headers["etag"], "Accept")


def test_the_two_formats_have_etags_of_their_own(service, report):
    etags = {service.http.get(f"{report}?format={name}").headers["etag"] for name in ("json", "html")}

    assert len(etags) == 2


def test_the_policy_allows_the_pages_own_script_and_style_alone(service, report):
    answer = service.http.get(f"{report}?format=html")
    policy = answer.headers["content-security-policy"]
    (style, data, script) = ELEMENT.findall(answer.text)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for _, text in (style, script)
    ]

    assert policy == report_policy()
    assert f"style-src {hashes[0]};" in policy
    assert f"script-src {hashes[1]};" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert data[1].startswith('{"version":1')
