"""The cache: exact, shared, and unharmed by writers that die and bytes that rot."""

import errno
import hashlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save

from tunesmith import Caption, Crop, Field, InputError, Window
from tunesmith.cache import codec, shards
from tunesmith.cache import disk as module
from tunesmith.cache.disk import Cache
from tunesmith.cache.store import caption_key, sample_key
from tunesmith.data.database import open_database

LATENTS = Field("latents", "vae-1", per_sample=True)
PROMPT = Field("prompt", "text-1", per_sample=False, ragged=True)
CROP = Crop((40, 32), (32, 32), (4, 0))


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, shape):
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    if dtype.is_floating_point and shape == (2, 3, 4):
        value[0, 0, :3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    with Cache(tmp_path) as cache:
        cache.put("key", value)
        before = cache.get("key")
    with Cache(tmp_path) as cache:
        after = cache.get("key")
    for found in (before, after):
        assert found is not None
        assert (found.dtype, found.shape, bits(found)) == (value.dtype, value.shape, bits(value))


def test_views_that_share_or_reorder_memory_are_stored_as_they_look(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    with Cache(tmp_path) as cache:
        cache.put_many({"row": whole[1], "turned": whole.transpose(0, 2)})
        for key, expected in (("row", whole[1]), ("turned", whole.transpose(0, 2))):
            found = cache.get(key)
            assert found is not None
            assert torch.equal(found, expected)


def test_an_absent_key_is_none_and_the_first_value_of_a_key_stays(tmp_path):
    with Cache(tmp_path) as cache:
        assert cache.get("key") is None
        cache.put("key", torch.zeros(1))
        cache.put("key", torch.ones(1))
        assert cache.get("key") == torch.zeros(1)
        assert cache.damaged == 0


def test_asking_for_many_keys_finds_stored_and_waiting_ones(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put_many({f"{number}": torch.tensor(number) for number in range(1300)})
        assert cache.contains_many(f"{number}" for number in range(1000, 2000)) == {f"{number}" for number in range(1000, 1300)}
        assert cache.contains_many([]) == set()


def test_what_is_put_is_seen_by_others_after_a_flush(tmp_path):
    with Cache(tmp_path) as writer, Cache(tmp_path) as reader:
        writer.put("key", torch.ones(3))
        assert reader.get("key") is None
        writer.flush()
        assert torch.equal(reader.get("key"), torch.ones(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", ["flip", "shorten", "remove"])
def test_a_damaged_entry_is_absent_told_once_and_made_anew(tmp_path, harm):
    with Cache(tmp_path) as cache:
        cache.put_many({"good": torch.zeros(64), "bad": torch.ones(64)})
    [shard] = tmp_path.glob("shard-*.bin")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    if harm == "remove":
        shard.unlink()
    else:
        shard.write_bytes(content if harm == "flip" else content[:-10])
    told: list[str] = []
    with Cache(tmp_path, on_damage=told.append) as cache:
        assert cache.contains_many(["bad"]) == {"bad"}
        assert cache.get("bad") is None
        assert cache.get("bad") is None
        assert (cache.damaged, len(told)) == (1, 1)
        assert shard.name in told[0]
        assert cache.contains_many(["bad", "good"]) == {"good"}
        assert (cache.get("good") is None) == (harm == "remove")
        cache.put("bad", torch.ones(64))
        assert torch.equal(cache.get("bad"), torch.ones(64))  # type: ignore[arg-type]


def test_a_writer_killed_while_appending_leaves_only_whole_entries(tmp_path):
    program = dedent(f"""
        import torch
        from pathlib import Path
        from tunesmith.cache import disk as module
        module.GROUP_ENTRIES = 8
        cache = module.Cache(Path({str(tmp_path)!r}))
        number = 0
        while True:
            cache.put(str(number), torch.full((5000,), float(number)))
            number += 1
            print(number, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 45:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Cache(tmp_path) as cache:
        present = cache.contains_many(str(number) for number in range(100_000))
        assert len(present) >= 40
        assert len(present) % 8 == 0
        for key in present:
            value = cache.get(key)
            assert value is not None
            assert torch.equal(value, torch.full((5000,), float(key)))
        assert cache.damaged == 0
        cache.put("after", torch.ones(1))
        assert cache.get("after") == torch.ones(1)


def test_the_index_is_committed_only_after_the_bytes_are_on_disk(tmp_path, monkeypatch):
    def fail(file):
        raise OSError("the disk is full")

    with Cache(tmp_path) as cache:
        cache.put("key", torch.ones(3))
        monkeypatch.setattr(shards, "_sync", fail)
        with pytest.raises(InputError, match=r"\[run\] cache_dir.*the disk is full"):
            cache.flush()
        monkeypatch.undo()
        with Cache(tmp_path) as other:
            assert other.get("key") is None


def test_two_writers_and_a_reader_share_a_folder(tmp_path):
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with Cache(tmp_path) as cache:
                for number in range(60):
                    cache.put(f"{name}{number}", torch.full((100,), float(number)))
                    cache.put(f"both{number}", torch.full((100,), float(number)))
                    if number % 7 == 0:
                        cache.flush()
        except BaseException as error:  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    with Cache(tmp_path) as reader:
        while any(thread.is_alive() for thread in threads):
            value = reader.get("both30")
            assert value is None or torch.equal(value, torch.full((100,), 30.0))
            time.sleep(0.001)
        for number in range(60):
            for name in ("a", "b", "both"):
                value = reader.get(f"{name}{number}")
                assert value is not None
                assert torch.equal(value, torch.full((100,), float(number)))
        assert reader.damaged == 0
    assert not errors
    assert len(list(tmp_path.glob("shard-*.bin"))) == 2


def test_keys_differ_in_everything_that_a_value_depends_on():
    base = sample_key(LATENTS, "image-1", "hash", CROP)
    others = [
        sample_key(Field("latents", "vae-2", per_sample=True), "image-1", "hash", CROP),
        sample_key(Field("other", "vae-1", per_sample=True), "image-1", "hash", CROP),
        sample_key(LATENTS, "image-1", "hash2", CROP),
        sample_key(LATENTS, "image-1", "hash", Crop((40, 32), (32, 32), (5, 0))),
        sample_key(LATENTS, "image-1", "hash", Crop((41, 32), (32, 32), (4, 0))),
        sample_key(LATENTS, "image-1", "hash", CROP, Window(0, 9, 16)),
        sample_key(LATENTS, "image-1", "hash", CROP, Window(1, 9, 16)),
        caption_key(PROMPT, Caption("a")),
        caption_key(PROMPT, Caption("a", negative=True)),
        caption_key(PROMPT, Caption("b")),
        caption_key(Field("prompt", "text-2", per_sample=False), Caption("a")),
    ]
    assert len({base, *others}) == len(others) + 1
    assert base == sample_key(LATENTS, "image-1", "hash", CROP)


def test_keys_change_with_the_recipe_of_inputs():
    assert sample_key(LATENTS, "image-1", "hash", CROP) != sample_key(LATENTS, "image-2", "hash", CROP)


def test_locks_that_do_not_work_are_told_with_the_setting(tmp_path):
    path = tmp_path / "index.sqlite"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"\[run\] cache_dir: .*index.sqlite cannot be used .*network file systems.*local disk"):
        open_database(path, "CREATE TABLE a (b)", patience=0.01)
    holder.close()


def test_many_that_make_the_same_new_file_at_once_all_get_it(tmp_path):
    def fill(path: Path, row: int, together: threading.Barrier) -> None:
        together.wait()
        connection = open_database(path, "CREATE TABLE IF NOT EXISTS a (b)")
        connection.execute("INSERT INTO a VALUES (?)", (row,))
        connection.close()

    with ThreadPoolExecutor(4) as processes:
        for number in range(50):
            path, together = tmp_path / f"{number}.sqlite", threading.Barrier(4)
            list(processes.map(fill, [path] * 4, range(4), [together] * 4))
            connection = sqlite3.connect(path)
            assert {row for (row,) in connection.execute("SELECT b FROM a")} == {0, 1, 2, 3}
            connection.close()


def test_a_cache_folder_that_cannot_be_made_is_told_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"\[run\] cache_dir"):
        Cache(Path(tmp_path / "file" / "cache"))


def stored(folder: Path) -> dict[str, tuple[int, int]]:
    """Codec and length of every entry."""
    connection = sqlite3.connect(folder / "index.sqlite")
    found = {key: (codec, length) for key, codec, length in connection.execute("SELECT key, codec, length FROM entries")}
    connection.close()
    return found


@pytest.mark.parametrize(("compression", "codecs"), [("auto", (0, 1)), ("zstd", (1, 1)), ("none", (0, 0))])
def test_entries_are_compressed_as_asked_and_come_back_the_same(tmp_path, compression, codecs):
    noise = torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    padding = torch.zeros(1000)
    with Cache(tmp_path, compression=compression) as cache:
        cache.put_many({"noise": noise, "padding": padding})
    found = stored(tmp_path)
    assert (found["noise"][0], found["padding"][0]) == codecs
    assert (found["padding"][1] < 400) == (codecs[1] == 1)
    with Cache(tmp_path, compression="none") as cache:  # how it was written says the index, not the setting
        assert torch.equal(cache.get("noise"), noise)  # type: ignore[arg-type]
        assert torch.equal(cache.get("padding"), padding)  # type: ignore[arg-type]


def test_automatic_compression_needs_a_tenth(tmp_path, monkeypatch):
    made = {}
    for share in (0.89, 0.91):
        monkeypatch.setattr("zstandard.ZstdCompressor", lambda level, share=share: Shrinks(share))
        made[share] = codec.pack(torch.zeros(1000), "auto")[1]
    assert made == {0.89: codec.Codec.ZSTD, 0.91: codec.Codec.PLAIN}


class Shrinks:
    def __init__(self, share: float) -> None:
        self.share = share

    def compress(self, content: bytes) -> bytes:
        return content[: int(self.share * len(content))]


def test_a_cache_of_the_first_version_is_read_and_goes_on(tmp_path):
    content = save({"value": torch.arange(5.0)})
    (tmp_path / "shard-0123.bin").write_bytes(content)
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, shard TEXT, offset INT, length INT, checksum BLOB) WITHOUT ROWID")
    connection.execute("CREATE TABLE checked (shard TEXT PRIMARY KEY, size INT, mtime_ns INT) WITHOUT ROWID")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    connection.execute("INSERT INTO entries VALUES ('old', 'shard-0123.bin', 0, ?, ?)", (len(content), digest))
    connection.commit()
    connection.close()
    for _ in range(2):
        with Cache(tmp_path) as cache:
            assert cache.sound_many(["old"]) == {"old"}
            assert torch.equal(cache.get("old"), torch.arange(5.0))  # type: ignore[arg-type]
            cache.put("new", torch.zeros(1))
            assert cache.get("new") == torch.zeros(1)


def test_a_cache_of_a_newer_version_is_refused(tmp_path):
    Cache(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match=r"\[run\] cache_dir: .* was made by a newer Tunesmith"):
        Cache(tmp_path)


def test_a_shard_that_is_full_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    with Cache(tmp_path, compression="none") as cache:
        for number in range(6):
            cache.put(str(number), torch.full((100,), float(number)))
            cache.flush()
        assert {key: float(value[0]) for key, value in cache.get_many(map(str, range(6))).items()} == {str(n): n for n in range(6)}
    assert len(list(tmp_path.glob("shard-*.bin"))) == 2


def test_more_shards_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    for number in range(5):
        with Cache(tmp_path) as cache:
            cache.put(str(number), torch.tensor(number))
    with Cache(tmp_path) as cache:
        for _ in range(2):
            assert {key: int(value) for key, value in cache.get_many("01234").items()} == {str(n): n for n in range(5)}


def test_a_shard_that_another_is_writing_is_not_read_through_again_and_again(tmp_path, monkeypatch):
    with Cache(tmp_path) as writer, Cache(tmp_path) as reader:
        writer.put("key", torch.ones(3))
        writer.flush()
        monkeypatch.setattr(shards.Shards, "is_whole", lambda self, place: pytest.fail("read"))
        assert reader.sound_many(["key"]) == {"key"}
        monkeypatch.undo()


def test_what_one_claims_another_does_not_until_it_is_stored_released_or_its_owner_dies(tmp_path):
    keys = ["a", "b", "c"]
    with Cache(tmp_path) as one, Cache(tmp_path) as other:
        assert one.claim_many(["a", "b"]) == {"a", "b"}
        assert one.claim_many(keys) == {"c"}
        assert other.claim_many(keys) == set()
        assert other.others_at(keys) is not None
        assert one.others_at(keys) is None
        one.put("a", torch.zeros(1))
        one.flush()
        assert other.claim_many(keys) == set()
        one.release()
        assert other.claim_many(keys) == {"b", "c"}
        assert other.others_at(keys) is None
    with Cache(tmp_path) as third:
        assert third.claim_many(keys) == {"b", "c"}


def test_slow_work_is_committed_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP_SECONDS", 0.0)
    with Cache(tmp_path) as writer, Cache(tmp_path) as reader:
        writer.put("key", torch.ones(3))
        assert reader.contains_many(["key"]) == {"key"}


def test_locks_that_a_file_system_does_not_have_are_told_with_the_remedy(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(
        InputError, match=r"\[run\] cache_dir: .* cannot be locked \(No locks available\).*network file systems.*local disk"
    ):
        Cache(tmp_path)


def test_what_is_put_together_is_committed_together(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP_ENTRIES", 3)
    with Cache(tmp_path) as writer, Cache(tmp_path) as reader:
        for batch in ("ab", "cd", "ef"):
            writer.put_many({key: torch.zeros(1) for key in batch}, "latents")
        assert reader.contains_many("abcdef") == set("abcd")
