"""The documentation page of the API: Swagger UI, whose files are installed beside this package."""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

from schemas.problem import ProblemKind
from service.dependencies import RootPath
from service.errors import ProblemError

router = APIRouter(include_in_schema=False)

# The files of a release of Swagger UI: fastapi-offline brings them along.
SWAGGER_UI = files("fastapi_offline") / "static"
ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon.png": "image/png",
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Eckart: the API</title>
<link rel="stylesheet" href="{here}/swagger-ui.css">
<link rel="icon" href="{here}/favicon.png">
</head>
<body>
<div id="swagger-ui" data-openapi="{root_path}/openapi.json"></div>
<script src="{here}/swagger-ui-bundle.js"></script>
<script src="{here}/start.js"></script>
</body>
</html>
"""
# A file of its own, since the page's policy forbids scripts inside it.
START = """"use strict";
const place = document.getElementById("swagger-ui");
SwaggerUIBundle({
  url: place.dataset.openapi,
  domNode: place,
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


@router.head("/docs")
@router.get("/docs")
async def show_docs(root_path: RootPath) -> HTMLResponse:
    """Show the API's document in a browser."""
    return HTMLResponse(PAGE.format(root_path=root_path, here=f"{root_path}/docs"))


@router.get("/docs/start.js")
async def start_script() -> Response:
    """Send the script that starts Swagger UI."""
    return Response(START, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> FileResponse:
    """Send a file of Swagger UI."""
    if name not in ASSETS:
        raise ProblemError(ProblemKind.NOT_FOUND)
    return FileResponse(str(SWAGGER_UI / name), media_type=ASSETS[name])
