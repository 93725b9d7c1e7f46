"""What names a decomposition in the cache: its input, by content, and in whose name it was computed."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Self

from schemas.format.tensor import TensorInfo
from schemas.planning.layer import LayerPlan

SEPARATOR = "-"
OWNER_SEPARATOR = "@"
# Of the 255 bytes that a name may have, some are for `store.DEPENDENT_ENDING`.
LONGEST_FOLDER = 240
DIGEST_ENDING = "+"
# The most solvers that a cascade has, and so the most decompositions of one tensor, ever more accurate.
MAX_SOLVERS = 4


@dataclass(frozen=True, slots=True)
class DecompositionKey:
    """What was decomposed, by its content, and by which solver of the cascade."""

    file_sha256: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool = False
    calibration_sha256: str | None = None
    solver: int = 0
    base_sha256: str | None = None
    # What of the weight is decomposed, where it is not the weight itself.
    variant: str = ""
    # Of a weight that is quantized: how, and the files, other than the first, that hold parts of it.
    encoding: str = ""
    parts_sha256: str | None = None
    # By which libraries on which processor, in short: workers of two kinds keep one decomposition each. It is
    # no part of the digest; the service, which only needs the spectrum, takes that of any.
    origin: str = ""

    @classmethod
    def of(
        cls,
        file_sha256: str,
        tensor: TensorInfo,
        layer: LayerPlan,
        *,
        statistics_sha256: Collection[str] = (),
        base_sha256: str | None = None,
        parts_sha256: Collection[str] = (),
    ) -> Self:
        """Return the key of a weight: the service looks for what the worker stored, so both build it here.

        The digests are those of the files with the layer's statistics and with the weight that is subtracted.
        """
        return cls(
            file_sha256,
            tensor.name,
            tensor.dtype,
            tensor.shape,
            layer.transposed,
            calibration_sha256=SEPARATOR.join(statistics_sha256) or None,
            base_sha256=base_sha256,
            variant=layer.decomposed,
            encoding=layer.encoded.signature if layer.encoded is not None else "",
            parts_sha256=SEPARATOR.join(sorted({*parts_sha256} - {file_sha256})) or None,
        )

    @property
    def digest(self) -> bytes:
        """The SHA-256 of all fields but the origin."""
        # Fields that are not given do not count, so that keys stay the same where fields are added.
        names = [name for name in KEY_FIELDS if name not in ADDED_FIELDS or getattr(self, name)]
        # `astuple` copies each value, and a job asks for thousands of digests.
        values = [getattr(self, name) for name in names]
        return hashlib.sha256(json.dumps(values).encode()).digest()

    @property
    def sources(self) -> str:
        """The digests of the files it was computed from: it is deleted with any of them."""
        return SEPARATOR.join(
            filter(
                None,
                (self.file_sha256, self.parts_sha256, self.calibration_sha256, self.base_sha256),
            )
        )


KEY_FIELDS = tuple(field.name for field in fields(DecompositionKey) if field.name != "origin")
ADDED_FIELDS = frozenset({"base_sha256", "variant", "encoding", "parts_sha256"})


def folder_of(owner: str, sources: str) -> str:
    """Return the folder of the decompositions of an owner that were computed from these files.

    It names the files; a long name, which few file systems allow, is that of the first file and a digest.
    """
    name = owned(owner, sources)
    if len(name) <= LONGEST_FOLDER:
        return name
    first = sources.partition(SEPARATOR)[0]
    return f"{owned(owner, first)}{SEPARATOR}{hashlib.sha256(sources.encode()).hexdigest()}{DIGEST_ENDING}"


def owned(owner: str, digest: str) -> str:
    """Return a name of a file, by its digest, that no other owner's file has."""
    return f"{owner}{OWNER_SEPARATOR}{digest}" if owner else digest


def sources_of(folder: str) -> set[str]:
    """Return the files that the decompositions in a folder were computed from, as `owned` names them."""
    owner, _, digests = folder.rpartition(OWNER_SEPARATOR)
    return {owned(owner, digest) for digest in digests.split(SEPARATOR)}
