"""`service.headers`: which format a client gets, RFC 9110, 12.5.1."""

import pytest
from starlette.requests import Request

from service.errors import ProblemError
from service.headers import preferred_type

CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
JSON, HTML = "application/json", "text/html"


def asked(*fields):
    return Request({"type": "http", "headers": [(b"accept", field.encode()) for field in fields]})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ((), JSON),
        (("",), JSON),
        (("*/*",), JSON),
        (("text/html, application/json",), JSON),
        (("text/*, application/json;q=0.9",), HTML),
        (("text/html;q=0.9, */*;q=0.8",), HTML),
        (("text/html;q=0.8, */*;q=0.9",), JSON),
        (("application/json;q=0, */*",), HTML),
        (("text/html;q=0, */*",), JSON),
        (("TEXT/HTML;Q=1",), HTML),
        (("text/html ; level=1 ; q=0.4, application/json;q=0.3",), HTML),
        (("text/html;q=high, application/json;q=0.1",), JSON),
        (("application/json;q=0.2", "text/html;q=0.3"), HTML),
        ((CHROMIUM,), HTML),
    ],
)
def test_the_client_gets_what_it_likes_best(fields, wanted):
    assert preferred_type(asked(*fields), JSON, HTML) == wanted


@pytest.mark.parametrize("field", ["image/png", "*/*;q=0", "application/json;q=0, text/html;q=0.000"])
def test_a_client_that_takes_neither_is_refused(field):
    with pytest.raises(ProblemError):
        preferred_type(asked(field), JSON, HTML)
