"""The bills of materials of the images: tools/sbom.py."""

import json

from tools.pins import locked, pins
from tools.sbom import write_sbom


def test_the_document_lists_what_the_image_of_the_worker_installs(tmp_path):
    document = json.loads(write_sbom("worker", tmp_path).read_text())

    listed = {part["name"].lower().replace("_", "-"): part for part in document["components"]}
    assert document["bomFormat"] == "CycloneDX"
    assert set(listed) == locked()["worker"] | {"torch"}
    assert all(part["version"] == pins()[name] for name, part in listed.items())
    hashed = {name for name, part in listed.items() if _hashes(part)}
    assert hashed == set(listed) - {"torch"}


def _hashes(part):
    return [value for place in part.get("externalReferences", ()) for value in place.get("hashes", ())]
