"""checkpoints/store.py: each file is stored once and fits the others; deletions are whole."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.format.errors import CheckpointError
from state.checkpoints.store import new_checkpoint_id
from state.errors import CheckpointNotFound, ContentConflict, TooLarge

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
        ("m", "../config.json"),
        ("m", ".config.json"),
        ("m", "config.json\n"),
        ("m", "1_Pooling/config.json"),
    ],
)
def test_a_hostile_name_never_becomes_a_path(checkpoints, left, checkpoint_id, name):
    with pytest.raises(CheckpointError) as refused:
        checkpoints.receive(checkpoint_id, name, content_bytes=None, limit_bytes=100)
    assert refused.value.fault == "bad-name"
    assert left() == set()


@pytest.mark.parametrize("checkpoint_id", ["..", ".", "", "a/b", "nothing-here", "m\0"])
def test_what_is_not_there_is_not_found(checkpoints, checkpoint_id):
    assert not checkpoints.exists(checkpoint_id)
    for verb in (checkpoints.get, checkpoints.delete):
        with pytest.raises(CheckpointNotFound):
            verb(checkpoint_id)


@pytest.mark.parametrize("order", [(ONE, TWO, INDEX), (INDEX, ONE, TWO), (TWO, INDEX, ONE)])
def test_a_sharded_checkpoint_is_complete_when_all_files_are_stored(send, checkpoints, shards, order):
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
    ("before", "sent", "fault"),
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
    send, checkpoints, shards, safetensors, before, sent, fault
):
    for name in sorted(before):
        send("m", name, shards[name])
    ((name, content),) = sent.items()
    body = index(**content) if isinstance(content, dict) else safetensors(**{"z.weight": content})
    with pytest.raises(CheckpointError) as refused:
        send("m", name, body)
    assert refused.value.fault == fault
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


def test_a_job_sees_only_its_own_files_even_if_others_are_added(store_file, checkpoints):
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


def test_an_upload_survives_the_deletion_of_its_checkpoint(send, checkpoints, safetensors):
    send("m", "a.safetensors", safetensors())
    with checkpoints.receive("m", "b.safetensors", content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(safetensors())
        checkpoints.delete("m")
        assert upload.commit().created
    assert [file.name for file in checkpoints.get("m").files] == ["b.safetensors"]


def test_of_two_uploads_of_one_name_one_wins_and_the_other_conflicts(checkpoints, safetensors):
    bodies = [safetensors(), safetensors(**{"v.weight": (2, 2)})]
    uploads = [checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=1 << 20) for _ in bodies]
    for upload, body in zip(uploads, bodies, strict=True):
        upload.write(body)
    assert uploads[1].commit().created
    with uploads[0], pytest.raises(ContentConflict):
        uploads[0].commit()
    assert checkpoints.get("m").path(PLAIN).read_bytes() == bodies[1]


def test_one_of_many_simultaneous_uploads_creates_the_file(send, checkpoints, safetensors, left):
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: send("m", PLAIN, safetensors()), range(16)))
    assert [each.created for each in stored].count(True) == 1
    names = {PLAIN, f".{PLAIN}.header", ".manifest.json"}
    (file,) = checkpoints.get("m").files
    holder = f"holders/{file.sha256}/m"
    assert left() == {f"checkpoints/m/{name}" for name in names} | {holder}


def test_many_simultaneous_uploads_of_different_files_are_all_stored(store_file, checkpoints):
    names = [f"file-{number}.safetensors" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store_file("m", name), names))
    assert {file.name for file in checkpoints.get("m").files} == set(names)


def test_a_file_that_the_manifest_does_not_name_can_be_sent_again(send, checkpoints, safetensors, tmp_path):
    folder = tmp_path / "checkpoints" / "m"
    folder.mkdir(parents=True)
    (folder / PLAIN).write_bytes(b"half of something else")
    (folder / PLAIN).chmod(0o444)
    assert not checkpoints.exists("m")
    assert send("m", PLAIN, safetensors()).created
    assert checkpoints.get("m").path(PLAIN).read_bytes() == safetensors()


def test_a_file_that_was_removed_by_hand_is_missing_and_can_be_sent_again(send, checkpoints, safetensors):
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


CONFIG, VOCABULARY = "config.json", "vocab.txt"


def test_companions_are_stored_and_change_nothing_of_the_weights(send, checkpoints, shards):
    send("m", CONFIG, b"{}")
    assert not checkpoints.get("m").complete
    assert checkpoints.get("m").missing == ("a .safetensors file",)
    for name in (ONE, INDEX):
        send("m", name, shards[name])
    send("m", VOCABULARY, b"a\nb\n")
    assert checkpoints.get("m").missing == (TWO,)
    send("m", TWO, shards[TWO])

    stored = checkpoints.get("m")
    assert stored.complete
    assert list(stored.headers) == [ONE, TWO]
    assert stored.companions == (CONFIG, VOCABULARY)
    assert [file.name for file in stored.files] == sorted([CONFIG, VOCABULARY, *shards])
    assert [info.name for info in stored.tensors] == ["a.weight", "b.weight"]
    only = checkpoints.get("m", only=[*shards, CONFIG])
    assert (only.complete, only.companions) == (True, (CONFIG,))


def test_one_file_with_companions_is_complete_without_an_index(send, checkpoints, safetensors):
    send("m", "tokenizer.json", b"anything")
    send("m", PLAIN, safetensors())
    assert checkpoints.get("m").complete


def test_a_companion_is_stored_without_a_look_at_the_weights(send, checkpoints, shards):
    """A model has dozens of companions, and reading the headers of its shards takes seconds."""
    for name, content in shards.items():
        send("m", name, content)
    path = checkpoints.get("m").path(ONE)
    path.chmod(0o644)
    path.write_bytes(b"not a header")

    assert send("m", VOCABULARY, b"a").created


def test_a_companion_has_its_own_limit(send, checkpoints, left):
    before = left()
    for name, limit_bytes in ((VOCABULARY, 64 * 2**20), (CONFIG, 8 * 2**20)):
        with pytest.raises(TooLarge, match=rf"The file {name} .* {limit_bytes} bytes"):
            checkpoints.receive("m", name, content_bytes=limit_bytes + 1, limit_bytes=1 << 40)
        with checkpoints.receive("m", name, content_bytes=None, limit_bytes=1 << 40) as upload:
            upload.write(b" " * limit_bytes)
            with pytest.raises(TooLarge, match=f"The file {name} "):
                upload.write(b" ")
    assert left() == before


def test_all_companions_together_have_a_limit(send, checkpoints, safetensors, left):
    half_mb = b"x" * 2**19
    send("m", PLAIN, safetensors())
    manifest = checkpoints.get("m").path(PLAIN).with_name(".manifest.json")
    entries = json.loads(manifest.read_text())
    entries["big.txt"] = {"name": "big.txt", "size_bytes": 2**28 - 2**19, "sha256": "0" * 64}
    manifest.with_name("big.txt").touch()
    manifest.write_text(json.dumps(entries))

    send("m", "fits.txt", half_mb)
    before = left()
    with pytest.raises(TooLarge, match=r"beside its weights .* 268435456 bytes"):
        send("m", "one.txt", b"x")
    assert left() == before
    assert not send("m", "fits.txt", half_mb).created


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "nothing is ever unpickled"),
        ("optimizer.pt", "nothing is ever unpickled"),
        ("modeling_mine.py", "nothing is ever unpickled or executed"),
        ("pytorch_model.bin.index.json", "no index of .safetensors files"),
        ("report.json", "a report.json of its own"),
        ("Report.JSON", "a report.json of its own"),
        ("my notes.txt", "Rename the file"),
    ],
)
def test_no_other_type_is_taken_and_the_reason_is_told(checkpoints, left, name, words):
    with pytest.raises(CheckpointError, match=words) as refused:
        checkpoints.receive("m", name, content_bytes=None, limit_bytes=100)
    assert refused.value.fault == "bad-name"
    assert left() == set()


def test_a_config_that_is_none_is_refused_at_the_upload(send, left):
    with pytest.raises(CheckpointError, match="git-lfs") as refused:
        send("m", CONFIG, b"version https://git-lfs.github.com/spec/v1\n")
    assert refused.value.fault == "bad-config"
    assert left() == set()
