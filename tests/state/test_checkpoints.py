"""Checkpoints: each file published once, whole and checked, or not at all."""

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.format.errors import CheckpointError
from schemas.format.index import MAX_INDEX_BYTES
from state.checkpoints import new_checkpoint_id
from state.errors import CheckpointNotFound, ContentConflict, DigestMismatch, TooLarge

ONE, TWO = "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"
INDEX = "m.safetensors.index.json"
PLAIN = "model.safetensors"


def index(**weight_map: str) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


@pytest.fixture
def shards(safetensors):
    return {
        ONE: safetensors(**{"a.weight": (4, 4)}),
        TWO: safetensors(**{"b.weight": (2, 8)}),
        INDEX: index(**{"a.weight": ONE, "b.weight": TWO}),
    }


@pytest.fixture
def left(tmp_path):
    """Return what lists every file below the data directory that is no lock."""

    def files() -> set[str]:
        paths = (p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "locks")
        return {str(path.relative_to(tmp_path)) for path in paths}

    return files


@pytest.mark.parametrize("block_bytes", [1, 7, 100, 1 << 20])
def test_what_was_sent_is_stored_whatever_the_blocks(send, checkpoints, safetensors, block_bytes):
    body = safetensors()
    stored = send("m", PLAIN, body, block_bytes=block_bytes)
    assert (stored.info.size_bytes, stored.info.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert stored.created
    path = checkpoints.get("m").path(PLAIN)
    assert path.read_bytes() == body
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_same_bytes_again_change_nothing(send, checkpoints, safetensors):
    send("m", PLAIN, safetensors())
    before = checkpoints.get("m").path(PLAIN).stat()
    assert not send("m", PLAIN, safetensors()).created
    assert checkpoints.get("m").path(PLAIN).stat() == before


def test_other_bytes_under_the_same_name_are_refused(send, checkpoints, safetensors, left):
    send("m", PLAIN, safetensors())
    before = left()
    with pytest.raises(ContentConflict, match=PLAIN):
        send("m", PLAIN, safetensors(**{"w.weight": (2, 2)}))
    assert checkpoints.get("m").path(PLAIN).read_bytes() == safetensors()
    assert left() == before


@pytest.mark.parametrize(
    ("checkpoint_id", "name"),
    [
        ("..", PLAIN),
        (".hidden", PLAIN),
        ("a/b", PLAIN),
        ("", PLAIN),
        ("m\n", PLAIN),
        ("m" * 129, PLAIN),
        ("m", "../model.safetensors"),
        ("m", "model.bin"),
        ("m", ".safetensors"),
        ("m", ".manifest.json"),
        ("m", "model.safetensors\n"),
        ("m", "model.safetensors.index"),
    ],
)
def test_a_hostile_name_never_becomes_a_path(checkpoints, left, checkpoint_id, name):
    with pytest.raises(CheckpointError) as refused:
        checkpoints.receive(checkpoint_id, name, content_bytes=None, limit_bytes=100)
    assert refused.value.code == "bad-name"
    assert left() == set()


@pytest.mark.parametrize("checkpoint_id", ["..", ".", "", "a/b", "nothing-here", "m\0"])
def test_what_is_not_there_is_not_found(checkpoints, checkpoint_id):
    assert not checkpoints.exists(checkpoint_id)
    for verb in (checkpoints.get, checkpoints.delete):
        with pytest.raises(CheckpointNotFound):
            verb(checkpoint_id)


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(checkpoints, left):
    with pytest.raises(TooLarge) as refused:
        checkpoints.receive("m", PLAIN, content_bytes=101, limit_bytes=100)
    assert refused.value.limit_bytes == 100
    assert left() == set()


def test_a_body_that_grows_over_the_limit_is_refused_at_that_byte(checkpoints, safetensors, left):
    body = safetensors()
    limit_bytes = len(body) - 1
    with checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=limit_bytes) as upload:
        upload.write(body[:limit_bytes])
        with pytest.raises(TooLarge):
            upload.write(body[limit_bytes:])
    assert left() == set()


def test_a_wrong_digest_is_refused_and_leaves_nothing(checkpoints, safetensors, left):
    body = safetensors()
    another = hashlib.sha256(b"another").digest()
    with checkpoints.receive(
        "m", PLAIN, content_bytes=len(body), limit_bytes=1 << 20, expected_sha256=another
    ) as upload:
        upload.write(body)
        with pytest.raises(DigestMismatch, match=hashlib.sha256(body).hexdigest()):
            upload.commit()
    assert left() == set()


def test_the_right_digest_is_accepted(checkpoints, safetensors):
    body = safetensors()
    digest = hashlib.sha256(body).digest()
    with checkpoints.receive(
        "m", PLAIN, content_bytes=len(body), limit_bytes=1 << 20, expected_sha256=digest
    ) as upload:
        upload.write(memoryview(body))
        assert upload.commit().created


@pytest.mark.parametrize("end", [0, 5, 8, 40, -1])
def test_a_file_that_ends_early_is_refused_and_leaves_nothing(checkpoints, safetensors, left, end):
    with checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(safetensors()[:end])
        with pytest.raises(CheckpointError):
            upload.commit()
    assert left() == set()
    assert not checkpoints.exists("m")


def test_a_bad_header_is_refused_with_the_block_that_shows_it(checkpoints, left):
    with (
        checkpoints.receive("m", PLAIN, content_bytes=1 << 20, limit_bytes=1 << 40) as upload,
        pytest.raises(CheckpointError),
    ):
        upload.write(b"PK\x03\x04" + bytes(100))
    assert left() == set()


def test_an_index_is_refused_at_the_byte_that_is_too_much(checkpoints, left):
    with checkpoints.receive("m", INDEX, content_bytes=None, limit_bytes=1 << 40) as upload:
        upload.write(b" " * MAX_INDEX_BYTES)
        with pytest.raises(CheckpointError) as refused:
            upload.write(b" ")
    assert refused.value.code == "index-too-large"
    assert left() == set()


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"weight_map": {"a": "../x.safetensors"}}'])
def test_a_bad_index_is_refused_and_leaves_nothing(send, left, body):
    with pytest.raises(CheckpointError):
        send("m", INDEX, body)
    assert left() == set()


@pytest.mark.parametrize("order", [(ONE, TWO, INDEX), (INDEX, ONE, TWO), (TWO, INDEX, ONE)])
def test_a_sharded_set_is_complete_when_all_of_it_is_here_in_whatever_order(send, checkpoints, shards, order):
    for count, name in enumerate(order, 1):
        send("m", name, shards[name])
        checkpoint = checkpoints.get("m")
        assert checkpoint.complete is (count == 3)
        assert set(checkpoint.missing) == set(order[count:])
    assert [info.name for info in checkpoint.tensors] == ["a.weight", "b.weight"]
    assert [file.name for file in checkpoint.files] == sorted(order)
    assert checkpoint.index is not None
    assert checkpoint.parameters == 32


@pytest.mark.parametrize(
    ("before", "sent", "code"),
    [
        ({ONE, TWO}, {INDEX: {"a.weight": TWO, "b.weight": ONE}}, "tensor-in-other-shard"),
        ({ONE, TWO}, {INDEX: {"a.weight": ONE, "c.weight": TWO}}, "tensor-missing"),
        ({ONE, TWO}, {INDEX: {"a.weight": ONE}}, "shard-extra"),
        ({INDEX, ONE}, {PLAIN: (4, 4)}, "shard-extra"),
        ({INDEX, ONE}, {TWO: (4, 4)}, "tensor-missing"),
        ({INDEX}, {"n.safetensors.index.json": {"a.weight": ONE}}, "second-index"),
    ],
)
def test_a_file_that_does_not_fit_the_others_is_refused_and_they_stay(
    send, checkpoints, shards, safetensors, before, sent, code
):
    for name in sorted(before):
        send("m", name, shards[name])
    ((name, content),) = sent.items()
    body = index(**content) if isinstance(content, dict) else safetensors(**{"z.weight": content})
    with pytest.raises(CheckpointError) as refused:
        send("m", name, body)
    assert refused.value.code == code
    assert {file.name for file in checkpoints.get("m").files} == before


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ([PLAIN], []),
        ([ONE], [INDEX, TWO]),
        ([ONE, TWO], [INDEX]),
        (["a.safetensors", "b.safetensors"], ["an index file (*.safetensors.index.json)"]),
        (["m-00001-of-00001.safetensors"], [INDEX]),
    ],
)
def test_what_is_missing_is_named(store_file, checkpoints, names, missing):
    for name in names:
        store_file("m", name)
    checkpoint = checkpoints.get("m")
    assert checkpoint.missing == tuple(missing)
    assert checkpoint.complete is (not missing)


def test_a_name_that_promises_many_siblings_does_not_list_them_all(store_file, checkpoints):
    store_file("m", "m-00001-of-99999.safetensors")
    assert len(checkpoints.get("m").missing) == 1000


def test_a_job_sees_its_files_alone_whatever_is_added_later(store_file, checkpoints):
    store_file("m", "a.safetensors")
    store_file("m", "b.safetensors")
    assert not checkpoints.get("m").complete
    part = checkpoints.get("m", only=["a.safetensors"])
    assert part.complete
    assert [file.name for file in part.files] == ["a.safetensors"]


def test_a_deleted_checkpoint_is_gone_and_its_id_is_free(send, checkpoints, safetensors, left):
    send("m", PLAIN, safetensors())
    checkpoints.delete("m")
    assert left() == set()
    with pytest.raises(CheckpointNotFound):
        checkpoints.delete("m")
    assert send("m", PLAIN, safetensors(**{"v.weight": (1, 1)})).created


def test_an_upload_outlives_the_deletion_of_what_was_there(send, checkpoints, safetensors):
    send("m", "a.safetensors", safetensors())
    with checkpoints.receive("m", "b.safetensors", content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(safetensors())
        checkpoints.delete("m")
        assert upload.commit().created
    assert [file.name for file in checkpoints.get("m").files] == ["b.safetensors"]


def test_of_two_that_upload_one_name_one_wins_and_the_other_is_told(checkpoints, safetensors):
    bodies = [safetensors(), safetensors(**{"v.weight": (2, 2)})]
    uploads = [checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=1 << 20) for _ in bodies]
    for upload, body in zip(uploads, bodies, strict=True):
        upload.write(body)
    assert uploads[1].commit().created
    with uploads[0], pytest.raises(ContentConflict):
        uploads[0].commit()
    assert checkpoints.get("m").path(PLAIN).read_bytes() == bodies[1]


def test_of_many_that_upload_the_same_at_once_one_creates_it(send, checkpoints, safetensors, left):
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: send("m", PLAIN, safetensors()), range(16)))
    assert [each.created for each in stored].count(True) == 1
    assert left() == {f"checkpoints/m/{PLAIN}", "checkpoints/m/.manifest.json"}


def test_of_many_different_files_at_once_none_is_forgotten(store_file, checkpoints):
    names = [f"file-{number}.safetensors" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store_file("m", name), names))
    assert {file.name for file in checkpoints.get("m").files} == set(names)


def test_what_a_crash_left_between_the_rename_and_the_manifest_can_be_sent_again(
    send, checkpoints, safetensors, tmp_path
):
    folder = tmp_path / "checkpoints" / "m"
    folder.mkdir(parents=True)
    (folder / PLAIN).write_bytes(b"half of something else")
    (folder / PLAIN).chmod(0o444)
    assert not checkpoints.exists("m")
    assert send("m", PLAIN, safetensors()).created
    assert checkpoints.get("m").path(PLAIN).read_bytes() == safetensors()


def test_a_file_that_somebody_removed_is_missing_and_can_be_sent_again(send, checkpoints, safetensors):
    send("m", PLAIN, safetensors())
    checkpoints.get("m").path(PLAIN).unlink()
    assert not checkpoints.exists("m")
    assert send("m", PLAIN, safetensors()).created


def test_ids_of_the_server_are_valid_and_differ(send, checkpoints, safetensors):
    ids = {new_checkpoint_id() for _ in range(100)}
    assert len(ids) == 100
    for checkpoint_id in list(ids)[:3]:
        send(checkpoint_id, PLAIN, safetensors())
        assert checkpoints.exists(checkpoint_id)


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_found(send, checkpoints, safetensors):
    class Deleting(frozenset):
        """Names that take the checkpoint away when they are asked for, after the manifest was read."""

        def __contains__(self, name):
            checkpoints.delete("m")
            return super().__contains__(name)

    send("m", PLAIN, safetensors())
    with pytest.raises(CheckpointNotFound):
        checkpoints.get("m", only=Deleting({PLAIN}))
