"""`service.routes.docs`: the page needs no other host, and keeps to the policy that it is sent with."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest

from service.access.browsers import PAGE_POLICY


class Addresses(HTMLParser):
    """Collects what a page loads, and what its policy forbids: scripts and styles inside it."""

    def __init__(self):
        super().__init__()
        self.loaded, self.inline, self._in_script = [], [], False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loaded += [given[name] for name in ("src", "href") if name in given]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self._in_script = tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("prefix", ["", "/eckart"])
def test_the_page_loads_its_own_files_alone(service, prefix):
    headers = {"X-Forwarded-Prefix": prefix} if prefix else {}
    answer = service.http.get("/docs", headers=headers)
    page = Addresses()
    page.feed(answer.text)

    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert page.inline == []
    assert len(page.loaded) == 4
    for address in page.loaded:
        assert urljoin(f"http://service{prefix}/docs", address).startswith(f"http://service{prefix}/docs/")
        assert service.http.get(address.removeprefix(prefix)).status_code == 200


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("start.js", "text/javascript"),
        ("favicon.png", "image/png"),
    ],
)
def test_a_file_has_the_type_that_nosniff_asks_for(service, name, media_type):
    answer = service.http.get(f"/docs/{name}")
    assert answer.headers["content-type"].partition(";")[0] == media_type
    assert answer.content


def test_the_style_sheet_loads_nothing_from_elsewhere(service):
    loaded = re.findall(
        r"url\(\s*[\"']?([^)\"']{0,8})|(@import)", service.http.get("/docs/swagger-ui.css").text
    )
    assert {address for address, _ in loaded} <= {"data:ima"}
    assert not any(imported for _, imported in loaded)


def test_no_validator_of_another_host_is_asked(service):
    assert "validatorUrl: null" in service.http.get("/docs/start.js").text


@pytest.mark.parametrize("name", ["redoc.standalone.js", "%2e%2e", "%2e%2e%2fcore.py", "core.py"])
def test_no_other_file_is_sent(service, name):
    assert service.http.get(f"/docs/{name}").status_code == 404
