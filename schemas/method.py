"""The methods that a spec may name: one, or under a budget a list; and the names of dtypes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schemas.base import fault_at
from schemas.planning.codecs import CODECS, KEEP
from schemas.planning.forms import CONV_FORMS, FORMS, FormOptions
from schemas.rank_rule import RankRule, budget_of


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotates a string that must be a name in a table, or one of `others`; looked up at validation."""

    table: Collection[str]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.others, *self.table)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | {"enum": list(self.names)}

    def _check(self, name: str) -> str:
        if name in self.names:
            return name
        *first, last = (repr(known) for known in self.names)
        raise PydanticCustomError(
            "literal_error", "Input should be {names}", {"names": f"{', '.join(first)} or {last}"}
        )


MethodName = Annotated[str, OneOf(FORMS)]
Conv = Annotated[str, OneOf(CONV_FORMS)]


def _method_tag(value: object) -> str:
    return "several methods" if isinstance(value, list | tuple) else "one method"


# A list leaves the choice to a budget.
Method = Annotated[
    Annotated[MethodName, Tag("one method")]
    | Annotated[tuple[MethodName, ...], Field(min_length=1, max_length=32), Tag("several methods")],
    Discriminator(_method_tag),
]


def methods_of(method: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that a spec allows."""
    return (method,) if isinstance(method, str) else method


FactorDtype = Annotated[str, OneOf(CODECS, others=(KEEP,))]


def need_rank(methods: tuple[str, ...]) -> bool:
    return any(FORMS[method].has_ranks for method in methods)


def check_methods(
    method: str | tuple[str, ...],
    rank: int | RankRule | None,
    *,
    at: tuple[int | str, ...] = ("method",),
    otherwise: tuple[int | str, ...] = ("rank",),
) -> None:
    """Refuse a list without a budget, and forms for which a budget makes no sense.

    `at` is the path of the method, and `otherwise` that of what else may be changed.
    """
    methods = methods_of(method)
    rule = budget_of(rank)
    if len(methods) > 1 and rule is None:
        raise fault_at(
            otherwise,
            "list_without_budget",
            "a list of methods leaves the choice to a budget: give a rank such as "
            '{"budget_bytes": 50000000}, or one method',
        )
    if rule is None:
        return
    for number, name in enumerate(methods):
        place = (*at, number) if isinstance(method, tuple) else at
        if name in methods[:number]:
            raise fault_at(place, "twice_in_list", "give {method} once in a list", method=name)
        if len(methods) > 1 and not FORMS[name].known_by_spectrum:
            raise fault_at(
                place,
                "not_in_list",
                "a list cannot have {method}: at the same size svd is never worse. Leave it out, or give it "
                "to some layers by an override",
                method=name,
            )
        if rule.budget is not None and FORMS[name].of(FormOptions()).quantizer is not None:
            raise fault_at(
                place,
                "quantised_budget",
                "{method} saves bytes and no parameters: give budget_bytes instead of budget",
                method=name,
            )
