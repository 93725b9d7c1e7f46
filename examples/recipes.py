"""The specs that the studies compare: rules of several families, each at several sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Every choice of a method list that a budget in bytes may make.
MIXED = ("svd", "int8", "int4", "int3", "int8+svd", "int4+svd", "int3+svd")
GROUPS = (64,)
CORRECTION_RANKS = (8, 32)


@dataclass(frozen=True)
class Recipe:
    """One job of a study: the family and the rule it belongs to, the size asked for, and its spec."""

    family: str
    rule: str
    asked: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """The layers that a study compresses, the sizes of their weights and of the file, and two calibrations.

    `inputs` has the statistics of the inputs alone, `both` those of the gradients too. Without calibrations,
    the rules that need one are left out.
    """

    include: Sequence[str]
    weight_bytes: int
    file_bytes: int
    inputs: str | None = None
    both: str | None = None

    @property
    def best(self) -> dict[str, Any]:
        """What a spec has for the best calibration there is."""
        return {"calibration": self.both} if self.both else {}

    def bytes_for(self, share: float) -> int:
        """Return the size of a file whose selected weights have this share of their bytes."""
        return self.file_bytes - self.weight_bytes + int(share * self.weight_bytes)


def low_rank(subject: Subject, shares: Sequence[float]) -> Iterator[Recipe]:
    """Yield the forms that store fewer numbers, at shares of the parameters."""
    rules: list[tuple[str, str, str, dict[str, Any]]] = [
        ("no calibration", "svd, one ratio", "ratio", {}),
        ("no calibration", "svd, budget", "budget", {}),
    ]
    if subject.inputs:
        inputs = {"calibration": subject.inputs}
        rules += [
            ("one-sided", "one-sided svd, one ratio", "ratio", inputs),
            ("one-sided", "one-sided svd, budget", "budget", inputs),
        ]
    if subject.both:
        rules += [
            ("two-sided", "two-sided svd, one ratio", "ratio", subject.best),
            ("two-sided", "two-sided svd, budget", "budget", subject.best),
            ("two-sided", "two-sided pivot, budget", "budget", subject.best | {"method": "pivot"}),
        ]
    small = subject.best | {"dtype": "int8"}
    rules.append(("low rank, int8 factors", "svd, budget, int8 factors", "budget", small))
    for share in shares:
        for family, rule, kind, options in rules:
            spec = _spec(subject, method="svd", rank={kind: share})
            yield Recipe(family, rule, f"{share:g} of the parameters", spec | options)


def neurons(subject: Subject, shares: Sequence[float]) -> Iterator[Recipe]:
    """Yield fewer neurons for every MLP and a two-sided svd for the rest, at shares of the parameters."""
    for share in shares:
        spec = _spec(subject, method="svd", rank={"ratio": share}, pairs="neurons", calibration=subject.both)
        yield Recipe("neurons", "neurons, two-sided svd for the rest", f"{share:g} of the parameters", spec)


def rounded(subject: Subject) -> Iterator[Recipe]:
    """Yield the integer forms alone, plain and with error feedback, and corrected by factors of int8."""
    ways: list[tuple[str, dict[str, Any]]] = [("plain rounding", {})]
    if subject.both:
        ways.append(("error feedback", subject.best))
    for family, options in ways:
        yield Recipe(family, f"int8, {family}", "", _spec(subject, method="int8", **options))
        for bits in ("int4", "int3"):
            for group in GROUPS:
                spec = _spec(subject, method=bits, group=group, **options)
                yield Recipe(family, f"{bits}, {family}", f"group {group}", spec)
    for bits in ("int4", "int3"):
        for rank in CORRECTION_RANKS:
            spec = _spec(subject, method=f"{bits}+svd", rank=rank, dtype="int8", **subject.best)
            yield Recipe("rounded + svd", f"{bits}+svd, int8 factors", f"rank {rank}", spec)


def mixed(subject: Subject, shares: Sequence[float]) -> Iterator[Recipe]:
    """Yield one budget in bytes over all forms, at shares of the bytes."""
    for share in shares:
        rank = {"budget_bytes": subject.bytes_for(share)}
        spec = _spec(subject, method=list(MIXED), rank=rank, dtype="int8", **subject.best)
        yield Recipe("one budget over all forms", "method list", f"{share:g} of the bytes", spec)


def _spec(subject: Subject, **options: object) -> dict[str, Any]:
    return {"include": list(subject.include), **options}
