"""A spec that is well formed but cannot be met by the checkpoint it is for."""


class SpecError(ValueError):
    """What cannot be met: `pointer` is the field within the spec, `detail` names the layer and the remedy."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(pointer, detail)
        self.pointer = pointer
        self.detail = detail

    def __str__(self) -> str:
        return self.detail
