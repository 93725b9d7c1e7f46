"""Beginning to store what a request brings; runs in the upload's own thread."""

from service.deps import Services
from service.forms import CheckpointForm, FormContent, RawFile, check_file_name
from service.multipart import MultipartSink


def begin_file(
    services: Services,
    checkpoint_id: str,
    filename: str,
    *,
    content_bytes: int | None,
    expected: bytes | None,
) -> RawFile:
    """Begin with one file that is the whole body."""
    upload = services.checkpoints.receive(
        checkpoint_id,
        check_file_name(filename),
        content_bytes=content_bytes,
        limit_bytes=services.settings.max_upload_bytes,
    )
    return RawFile(upload, space=services.space, expected_sha256=expected)


def begin_form(
    services: Services, checkpoint_id: str, boundary: bytes, *, with_spec: bool
) -> MultipartSink[FormContent]:
    """Begin with a form of files, and for a job its spec."""
    settings = services.settings
    form = CheckpointForm(
        services.checkpoints,
        checkpoint_id,
        space=services.space,
        limit_bytes=settings.max_upload_bytes,
        spec_limit_bytes=settings.max_spec_bytes,
        with_spec=with_spec,
    )
    return MultipartSink(form, boundary=boundary, max_parts=settings.max_files + with_spec)
