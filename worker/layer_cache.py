"""Load and store the decompositions of a job's layers in the cache on disk."""

import hashlib
import platform
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch

from schemas.checkpoint import FileInfo
from schemas.planning.distortion import Norms
from schemas.planning.layer import LayerPlan
from schemas.planning.references import References
from schemas.spectrum import Spectrum
from state.cache.file import DamagedFile, DecompositionFile, DecompositionHeader, estimate_file_bytes
from state.cache.key import MAX_SOLVERS, DecompositionKey
from state.cache.store import DecompositionCache
from worker.checkpoint.reader import tensor_bytes
from worker.lowrank import Decomposition
from worker.lowrank.blas import kernels
from worker.work_plan import LayerTask, WorkPlan

# Increment when a release changes the bits of decompositions.
NUMERICS = 5
# Of the environment's digest, in the names of files; each file has all of it.
ORIGIN_DIGITS = 16
PACKAGES = ("torch", "numpy", "scipy")
BASIS_DTYPES = {4: torch.float32, 8: torch.float64}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cache entries of a job's layers, by number.

    Decompositions from another environment are ignored, so that a job gives the same bytes with and without
    cached decompositions.
    """

    cache: DecompositionCache
    keys: Mapping[int, DecompositionKey]
    environment: bytes
    # Seconds that this attempt spent on decomposing a layer before it factors that layer.
    decomposed_s: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        cache: DecompositionCache,
        work: WorkPlan,
        files: Iterable[FileInfo],
        reference_files: References[tuple[FileInfo, ...]],
        device: torch.device,
    ) -> Self:
        """Build the keys of all layers to be factored, from the digests of their files."""
        digests = _digests(files)
        references = References(**{field: _digests(several) for field, several in reference_files.given()})
        keys = {
            task.number: _key(task, digests, references) for task in work.tasks if task.layer.reason is None
        }
        return cls(cache, keys, environment_digest(device))

    def layer(self, task: LayerTask) -> "CachedLayer":
        """Return the view of one layer that its solvers read from and add to."""
        rank = task.layer.rank if isinstance(task.layer.rank, int) else None
        return CachedLayer(self, task, rank)

    def spectra(self, task: LayerTask) -> Iterator[Spectrum]:
        """Yield the cached spectra of a layer by solver, until the first that is missing."""
        for solver in range(MAX_SOLVERS):
            file = self._open(task, solver)
            if file is None:
                return
            with file:
                spectrum = file.head.spectrum
            yield spectrum

    def load(self, task: LayerTask, solver: int, rank: int | None) -> Decomposition | None:
        """Load a decomposition with at least `rank` vectors, or all for None; checksums are verified.

        One of a job that needed fewer vectors is None, so that it is computed again and replaced.
        """
        file = self._open(task, solver)
        if file is None:
            return None
        head = file.head
        with file:
            if head.rows < (rank or task.layer.num_vectors):
                return None
            rows = head.rows if rank is None else file.rows_of_blocks(rank)
            basis = torch.empty(rows, head.length, dtype=BASIS_DTYPES[head.item_bytes])  # [r, s]
            try:
                file.read_into(tensor_bytes(basis))
            except (DamagedFile, OSError) as error:
                self.cache.discard(self._key(task, solver), error)
                return None
        values = torch.frombuffer(head.singular_values, dtype=torch.float64)  # [p]
        return Decomposition(values, basis, head.axis, head.roundoff, calibrated=task.layer.is_weighted)

    def _open(self, task: LayerTask, solver: int) -> DecompositionFile | None:
        file = self.cache.open(self._key(task, solver))
        if file is not None and file.head.environment != self.environment:
            file.close()
            return None
        return file

    def _key(self, task: LayerTask, solver: int) -> DecompositionKey:
        # Until a budget is spent, a layer has several forms, and its key is that of the first.
        return self._own(task, solver=solver, variant=task.layer.decomposed)

    def _own(self, task: LayerTask, *, variant: str, solver: int = 0) -> DecompositionKey:
        origin = self.environment.hex()[:ORIGIN_DIGITS]
        return replace(self.keys[task.number], solver=solver, variant=variant, origin=origin)

    def norms(self, task: LayerTask, decomposed: str) -> Norms | None:
        """Return the cached norms of what a layer's form decomposes."""
        file = self.cache.open(self._norms_key(task, decomposed))
        if file is None:
            return None
        with file:
            return Norms(*file.head.spectrum.scaled()) if file.head.environment == self.environment else None

    def store_norms(self, task: LayerTask, norms: Mapping[str, Norms]) -> None:
        """Store the norms of what a layer's forms decompose, as a decomposition without vectors."""
        for decomposed, each in norms.items():
            key = self._norms_key(task, decomposed)
            head = DecompositionHeader(
                key=key.digest,
                environment=self.environment,
                exponent=0,
                roundoff=0.0,
                axis="rows",
                item_bytes=8,
                rows=0,
                length=1,
                singular_values=array("d", (each.frobenius, each.schatten4)),
            )
            self.cache.put(key, head, memoryview(b""), sources=self._sources(task))

    def _norms_key(self, task: LayerTask, decomposed: str) -> DecompositionKey:
        return self._own(task, variant=f"norms {decomposed}")

    def _sources(self, task: LayerTask) -> list[Path]:
        others = (*task.statistics.values(), *([task.base] if task.base else []))
        return [task.path, *{path: None for path, _ in others}]

    def store(self, task: LayerTask, solver: int, decomposition: Decomposition, exponent: int) -> None:
        """Store a decomposition of 2^-exponent · W, if there is space."""
        key = self._key(task, solver)
        basis = decomposition.basis.detach().cpu().contiguous()
        head = DecompositionHeader(
            key=key.digest,
            environment=self.environment,
            exponent=exponent,
            roundoff=decomposition.roundoff,
            axis=decomposition.axis,
            item_bytes=basis.element_size(),
            rows=basis.shape[0],
            length=basis.shape[1],
            singular_values=array("d", decomposition.singular_values.tolist()),
        )
        self.cache.put(key, head, tensor_bytes(basis), sources=self._sources(task))


def needed_bytes(tasks: Iterable[LayerTask]) -> int:
    """Estimate the disk space for the decompositions of these layers."""
    return sum(
        _file_bytes(layer)
        for task in tasks
        if task.layer.reason is None
        for layer in _decomposed_once(task.layer)
    )


def _decomposed_once(layer: LayerPlan) -> Iterable[LayerPlan]:
    """Return, for each matrix that may be decomposed, the variant that needs most of its vectors."""
    decomposed = [each for each in layer.variants if each.form.has_ranks and each.form.has_decomposition]
    variants = sorted(decomposed, key=lambda each: each.num_vectors)
    return {each.decomposed: each for each in variants}.values()


class CachedLayer:
    """The decompositions of one layer by solver; cached ones are loaded when needed."""

    def __init__(self, cache: LayerCache, task: LayerTask, rank: int | None) -> None:
        self._layer_cache = cache
        self._task = task
        self._rank = rank
        self._loaded: dict[int, Decomposition | None] = {}
        self._new: dict[int, Decomposition] = {}

    def get(self, solver: int) -> Decomposition | None:
        """Return the cached decomposition of a solver."""
        if solver not in self._loaded:
            self._loaded[solver] = self._layer_cache.load(self._task, solver, self._rank)
        return self._loaded[solver]

    def __setitem__(self, solver: int, decomposition: Decomposition) -> None:
        """Add a new decomposition, which `write` will store."""
        self._new[solver] = decomposition

    @property
    def decomposed_s(self) -> float | None:
        """Seconds that this attempt spent on decomposing the layer earlier; None if it did not."""
        return self._layer_cache.decomposed_s.get(self._task.number)

    @property
    def found(self) -> bool:
        """Whether all decompositions came from the cache."""
        return not self._new

    def write(self, exponent: int) -> None:
        """Store the new decompositions."""
        for solver, decomposition in self._new.items():
            self._layer_cache.store(self._task, solver, decomposition, exponent)


def _file_bytes(layer: LayerPlan) -> int:
    in_float64 = layer.dtype == "F64" or layer.is_weighted
    rows, columns = layer.decomposed_shape
    length = rows if layer.is_weighted else min(rows, columns)
    return estimate_file_bytes(
        rows=layer.num_vectors,
        length=length,
        item_bytes=8 if in_float64 else 4,
        singular_values=min(rows, columns),
    )


Digests = Mapping[str, str]


def _digests(files: Iterable[FileInfo]) -> Digests:
    return {file.name: file.sha256 for file in files}


def _key(task: LayerTask, digests: Digests, references: References[Digests]) -> DecompositionKey:
    statistics = references.calibration or {}
    return DecompositionKey.of(
        digests[task.path.name],
        task.tensor,
        task.layer,
        statistics_sha256={statistics[path.name]: None for path, _ in task.statistics.values()},
        base_sha256=None
        if task.base is None or references.base is None
        else references.base[task.base[0].name],
        parts_sha256=[digests[path.name] for path, _ in task.parts.values()],
    )


def environment_digest(device: torch.device) -> bytes:
    """Return a digest of everything but the weight that the bits of a decomposition depend on."""
    words = [str(NUMERICS), *(version(package) for package in PACKAGES)]
    words += [platform.machine(), torch.backends.cpu.get_cpu_capability(), *kernels()]
    words += [str(torch.get_num_threads())]
    words += [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]
    return hashlib.sha256("\n".join(words).encode()).digest()
