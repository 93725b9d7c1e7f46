"""state/errors.py: every error says what to do."""

from state import errors


def test_every_error_says_what_to_do():
    made = [
        errors.JobNotFound(),
        errors.UnreadableRecord(),
        errors.CheckpointNotFound(),
        errors.ContentConflict("a.safetensors"),
        errors.CheckpointInUse(),
        errors.CheckpointGone(),
        errors.IdempotencyMismatch(),
        errors.DigestMismatch(expected="a", actual="b"),
        errors.TooLarge(10),
        errors.TooManyJobs(10),
        errors.OutOfSpace(),
        errors.Busy("Much is under way."),
        errors.JobNotFailed("queued"),
        errors.FailureStays("The file changed."),
        errors.FilesLocked(),
        errors.UploadNotFound(),
        errors.UploadLocked(),
        errors.OffsetMismatch(given=7, offset=9),
        errors.ChecksumMismatch(),
        errors.TooManyUploads(7),
        errors.RedisUnavailable(),
    ]
    leaves = {each for each in _below(errors.StateError) if not each.__subclasses__()}
    assert {type(error) for error in made} == leaves
    assert all(str(error).endswith(".") and len(str(error)) > 30 for error in made)


def _below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
