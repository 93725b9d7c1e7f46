"""The drawn tree of errors."""

import inspect
import re

from state import errors


def test_the_drawn_tree_is_the_tree():
    drawn, parents = {}, []
    for line in errors.__doc__.splitlines()[2:]:
        if found := re.match(r"^([│├└─ ]*)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            del parents[depth:]
            drawn[found[2]] = parents[-1] if parents else "Exception"
            parents.append(found[2])
    classes = {
        name: each.__base__.__name__
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if each.__module__ == errors.__name__
    }
    assert drawn == classes


def test_every_error_says_what_to_do():
    made = [
        errors.JobNotFound(),
        errors.CheckpointNotFound(),
        errors.ContentConflict("a.safetensors"),
        errors.CheckpointInUse(),
        errors.CheckpointGone(),
        errors.IdempotencyMismatch(),
        errors.DigestMismatch(expected="a", actual="b"),
        errors.TooLarge(10),
        errors.OutOfSpace(),
        errors.BadCursor(),
        errors.StoreUnavailable(),
    ]
    leaves = {each for each in _below(errors.StateError) if not each.__subclasses__()}
    assert {type(error) for error in made} == leaves
    assert all(str(error).endswith(".") and len(str(error)) > 30 for error in made)


def _below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
