"""A data directory with many kept jobs and checkpoints: copies of what a service wrote of one of each."""

import hashlib
import json
import secrets
import shutil
from array import array
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from schemas.checkpoint import FileInfo
from state.cache.file import DecompositionHeader
from state.cache.key import DecompositionKey
from state.cache.store import DecompositionCache
from state.checkpoints.holders import Holders
from state.data_dir import DataDir

CHANGED_BYTES = 8
SPREAD = timedelta(seconds=7)


@dataclass(frozen=True, slots=True)
class Kept:
    """The ids of one-shot jobs and their checkpoints, in the order of their creation."""

    jobs: list[str]
    checkpoints: list[str]


def fill(data_dir: Path, job_id: str, count: int) -> Kept:
    """Copy an ended one-shot job, its checkpoint and a cached decomposition; no service may run on them.

    Each copy has an id, a time and bytes of its own, as if it had been sent.
    """
    kept, template = Kept([], []), _Template.read(DataDir(data_dir), job_id)
    cache = DecompositionCache.shared(data_dir, limit_bytes=1 << 40)
    for number in range(count):
        checkpoint_id, copy_id = "C" + secrets.token_hex(16), "J" + secrets.token_hex(16)
        sha256 = template.write(copy_id, checkpoint_id, number=number, age=SPREAD * (count - number))
        # Of a file that is stored, or the service would remove it.
        put_decomposition(cache, sha256)
        kept.jobs.append(copy_id)
        kept.checkpoints.append(checkpoint_id)
    # Redis holds none of the copies, and no list of checkpoints does; both are made again of the files.
    shutil.rmtree(data_dir / "redis")
    shutil.rmtree(data_dir / "timeline")
    return kept


def put_decomposition(cache: DecompositionCache, sha256: str) -> None:
    """Put the decomposition of a small weight of the file with this digest into a cache."""
    key = DecompositionKey(sha256, "a.weight", "F32", (2, 2))
    head = DecompositionHeader(key.digest, bytes(32), 0, 1e-9, "columns", 4, 2, 2, array("d", (2.0, 1.0)))
    cache.put(key, head, memoryview(bytes(16)), sources=[])


@dataclass(frozen=True, slots=True)
class _Template:
    paths: DataDir
    job_id: str
    checkpoint_id: str
    sha256: str
    created_at: datetime

    @classmethod
    def read(cls, paths: DataDir, job_id: str) -> "_Template":
        record = json.loads(paths.record(job_id).read_bytes())
        (file,) = (FileInfo.model_validate(each) for each in record["files"])
        created_at = datetime.fromisoformat(record["created_at"])
        return cls(paths, job_id, record["checkpoint"], file.sha256, created_at)

    def write(self, job_id: str, checkpoint_id: str, *, number: int, age: timedelta) -> str:
        """Write one copy of the job and of its checkpoint; return the digest of its file."""
        source = self.paths.checkpoint(self.checkpoint_id)
        (weights,) = source.glob("*.safetensors")
        changed = weights.read_bytes()[:-CHANGED_BYTES] + number.to_bytes(CHANGED_BYTES, "little")
        sha256 = hashlib.sha256(changed).hexdigest()
        names = {self.job_id: job_id, self.checkpoint_id: checkpoint_id, self.sha256: sha256}
        names |= {_text(self.created_at): _text(self.created_at - age)}
        _copy(self.paths.job(self.job_id), self.paths.job(job_id), names)
        target = self.paths.checkpoint(checkpoint_id)
        _copy(source, target, names)
        (target / weights.name).write_bytes(changed)
        Holders(self.paths).add(sha256, checkpoint_id)
        return sha256


def _copy(source: Path, target: Path, names: dict[str, str]) -> None:
    """Copy a folder, with other names in the texts of its files."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name, names)
            continue
        content = path.read_bytes()
        for old, new in names.items():
            content = content.replace(old.encode(), new.encode())
        (target / path.name).write_bytes(content)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
