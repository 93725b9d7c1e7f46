"""Reading what a compressed file says of itself."""

from collections.abc import Mapping

from pydantic import ValidationError

from eckart.errors import LoadError
from schemas.format.metadata import METADATA_KEY, FactoredLayer, FactoredLayers


def read_manifest(file_name: str, metadata: Mapping[str, str]) -> dict[str, FactoredLayer]:
    """Return a file's factored layers; none where it says nothing."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return FactoredLayers.model_validate_json(text).layers
    except ValidationError as error:
        raise LoadError(
            f"{file_name}: the {METADATA_KEY!r} entry of its metadata is not one that this version of eckart "
            f"understands ({error.errors()[0]['msg']}); upgrade eckart, or compress the checkpoint again"
        ) from error
