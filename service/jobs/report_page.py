"""The report of a job as a page for browsers, filled anew for each request."""

import hashlib
import json

from starlette.responses import HTMLResponse, Response

from schemas.report_page import report_page
from service.headers import content_headers, etag_matches
from service.jobs.results import ResultFile
from service.report_template import report_policy, report_template


def send_report_page(file: ResultFile, job_id: str, if_none_match: str | None) -> Response:
    """Send the page of a report.json, or 304 if the client has it."""
    template = report_template()
    # What the page is made of: nobody builds it to find out that it is the same.
    made_of = file.sha256 + hashlib.sha256(template.encode()).hexdigest()
    headers = {"ETag": f'"{hashlib.sha256(made_of.encode()).hexdigest()}"'}
    if etag_matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    content = report_page(template, json.loads(file.path.read_bytes())).encode()
    digest = content_headers(hashlib.sha256(content).hexdigest())["Repr-Digest"]
    return HTMLResponse(
        content,
        headers=headers
        | {
            "Repr-Digest": digest,
            "Content-Security-Policy": report_policy(),
            "Content-Disposition": f'inline; filename="eckart-report-{job_id}.html"',
        },
    )
