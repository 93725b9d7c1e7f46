"""`service.routes.ui`: the page is sent whole by this service, below any prefix, and keeps to its policy."""

import gzip
import re
from urllib.parse import urljoin

import pytest

from service.access.browsers import PAGE_POLICY
from service.routes.ui import FOLDER, assets
from tests.service.routes.test_docs import Addresses

MOST_BYTES = 200_000
MOST_CHARACTERS = 120
MOST_LINES = 350


@pytest.mark.parametrize("prefix", ["", "/eckart"])
def test_the_page_loads_its_own_files_alone(service, prefix):
    headers = {"X-Forwarded-Prefix": prefix} if prefix else {}
    answer = service.http.get("/", headers=headers)
    page = Addresses()
    page.feed(answer.text)

    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert page.inline == []
    loaded = [address for address in page.loaded if not address.startswith("#") and "docs" not in address]
    assert len(loaded) >= 4
    for address in loaded:
        assert urljoin(f"http://service{prefix}/", address).startswith(f"http://service{prefix}/ui/")
        assert service.http.get(address.removeprefix(prefix)).status_code == 200
    assert f'data-root="{prefix}"' in answer.text


@pytest.mark.parametrize("name", sorted(assets()))
def test_a_file_has_its_type_and_is_asked_for_again_by_its_etag(service, name):
    answer = service.http.get(f"/ui/{name}")
    again = service.http.get(f"/ui/{name}", headers={"If-None-Match": answer.headers["etag"]})

    kind = answer.headers["content-type"].partition(";")[0]
    assert kind == {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.split(".")[-1]]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.content == (FOLDER / name).read_bytes()
    assert (again.status_code, again.content) == (304, b"")


def test_the_document_of_another_prefix_has_another_etag(service):
    here = service.http.get("/").headers["etag"]

    again = service.http.get("/", headers={"If-None-Match": here})
    assert (again.status_code, again.headers["content-security-policy"]) == (304, PAGE_POLICY)
    moved = service.http.get("/", headers={"If-None-Match": here, "X-Forwarded-Prefix": "/eckart"})
    assert moved.status_code == 200


@pytest.mark.parametrize("name", ["index.html", "%2e%2e", "%2e%2e%2fcore.py", "core.py", "app.js/", ""])
def test_no_other_file_is_sent(service, name):
    assert service.http.get(f"/ui/{name}").status_code == 404


def test_modules_import_what_is_there_and_make_no_markup_of_text():
    for name, asset in assets().items():
        text = asset.content.decode()
        imported = re.findall(r'^(?:import|export)\b[^;]*? from "([^"]+)"', text, re.MULTILINE)
        assert all(address.removeprefix("./") in assets() for address in imported), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", text
        ), name


def test_all_of_it_is_small():
    parts = [asset.content for asset in assets().values()] + [(FOLDER / "index.html").read_bytes()]

    assert sum(len(gzip.compress(part)) for part in parts) <= MOST_BYTES


@pytest.mark.parametrize("name", [name for name in sorted(assets()) if name.endswith(".js")])
def test_a_module_can_be_read(name):
    """As `npx prettier --print-width 120` leaves it; nothing here needs node."""
    lines = assets()[name].content.decode().splitlines()

    assert len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > MOST_CHARACTERS or line != line.rstrip()] == []
