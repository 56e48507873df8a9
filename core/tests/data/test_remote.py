"""Datasets behind URLs: fetched once, again when changed, and used without a connection when all is here."""

import functools
import http.server
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from core.tests.data.support import Facts, picture
from tunesmith import InputError
from tunesmith.config.datasets import ImageTable, MaskTable
from tunesmith.data.funnel import Funnel
from tunesmith.data.pictures import ImageKind, MaskKind
from tunesmith.listing import remote
from tunesmith.listing.files import list_files


def listed(url, folder, **settings):
    table = ImageTable(path=url, **settings)
    funnel = Funnel("set")
    return list_files(table, ImageKind(table, Facts()), folder, funnel), funnel


def names(listing):
    return [entry.name for entry in listing.entries]


def losses(funnel):
    return {lost.reason: (lost.count, lost.examples) for lost in funnel.losses}


def contents(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "files").rglob("*")) if path.is_file()}


@pytest.fixture
def png(tmp_path):
    return lambda seed=0: picture(tmp_path / f"made-{seed}.png", seed=seed).read_bytes()


@pytest.fixture
def memory():
    """The file system of memory://, empty; its `fetched` names what was read from it."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    fetched = []
    whole = type(system).get_file

    def counted(self, where, *arguments, **more):
        fetched.append(where)
        return whole(self, where, *arguments, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(system), "get_file", counted)
        patched.setattr(remote, "PAUSE", 0.0)
        yield SimpleNamespace(system=system, fetched=fetched, patched=patched)
    system.store.clear()


def test_a_folder_is_fetched_once_with_the_captions_that_are_asked_for(tmp_path, memory, png):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        memory.system.pipe(f"/set/{name}", png())
        memory.system.pipe(f"/set/{name[:-4]}.txt", name.encode())
        memory.system.pipe(f"/set/{name[:-4]}.json", b"{}")
    memory.system.pipe("/set/other.txt", b"no caption")
    memory.system.pipe("/set/.hidden.png", b"")
    memory.system.pipe("/settled/x.png", b"")
    kept = tmp_path / "kept"
    listing, funnel = listed("memory://set", kept, captions="textfile")
    assert names(listing) == ["a.png", "sub/b.png", "sub/deep/c.png"]
    assert [entry.where for entry in listing.entries] == [str(kept / "files" / name) for name in names(listing)]
    assert list(contents(kept)) == [
        f"files/{name}" for name in ("a.png", "a.txt", "sub/b.png", "sub/b.txt", "sub/deep/c.png", "sub/deep/c.txt")
    ]
    assert contents(kept)["files/sub/b.txt"] == b"sub/b.png"
    assert funnel.notes == [f"6 files were fetched from memory://set and are kept in {kept / 'files'}"]
    assert len(memory.fetched) == 6

    again, funnel = listed("memory://set/", kept, captions="textfile")
    assert (again, funnel.notes, len(memory.fetched)) == (listing, [], 6)

    listed("memory://set", kept, captions="json")
    assert sorted(memory.fetched[6:]) == ["/set/a.json", "/set/sub/b.json", "/set/sub/deep/c.json"]


def test_changed_files_are_fetched_again_and_removed_ones_leave(tmp_path, memory, png):
    for number in range(3):
        memory.system.pipe(f"/set/{number}.png", png(number))
        memory.system.pipe(f"/set/{number}.txt", b"caption")
    listed("memory://set", tmp_path / "kept", captions="textfile")
    memory.fetched.clear()
    memory.system.pipe("/set/1.png", png(7))
    memory.system.rm("/set/2.png")
    memory.system.rm("/set/0.txt")
    (tmp_path / "kept" / "files" / "1.txt").write_bytes(b"cut")
    listing, funnel = listed("memory://set", tmp_path / "kept", captions="textfile")
    assert names(listing) == ["0.png", "1.png"]
    assert sorted(memory.fetched) == ["/set/1.png", "/set/1.txt"]
    assert contents(tmp_path / "kept") == {
        "files/0.png": png(0),
        "files/1.png": png(7),
        "files/1.txt": b"caption",
        "files/2.txt": b"caption",
    }
    assert funnel.total == 2


def test_a_file_list_is_fetched_with_the_files_that_it_names(tmp_path, memory, png):
    memory.system.pipe("/set/lists/all.csv", b"file,caption\na.png,one\nsub/b.png,two\ngone.png,three\n../c.png,four\na.png,five\n")
    for name in ("a.png", "sub/b.png", "unlisted.png"):
        memory.system.pipe(f"/set/lists/{name}", png())
    memory.system.pipe("/set/c.png", png())
    url, kept = "memory://set/lists/all.csv", tmp_path / "kept"
    listing, funnel = listed(url, kept, captions="column")
    assert [(entry.name, dict(entry.columns)) for entry in listing.entries] == [
        ("a.png", {"caption": "one"}),
        ("sub/b.png", {"caption": "two"}),
    ]
    assert losses(funnel) == {
        "there is no such file": (1, ["gone.png"]),
        "it is not below the file list's folder, and nothing else is read": (1, ["line 5: ../c.png"]),
        "the list names it more than once; its first row counts": (1, ["a.png"]),
    }
    assert sorted(memory.fetched) == ["/set/lists/a.png", "/set/lists/all.csv", "/set/lists/sub/b.png"]
    memory.fetched.clear()
    assert listed(url, kept, captions="column")[0] == listing
    assert memory.fetched == []
    memory.system.pipe("/set/lists/all.csv", b"file,caption\nunlisted.png,six\n")
    assert names(listed(url, kept, captions="column")[0]) == ["unlisted.png"]


def test_a_long_file_list_looks_at_folders_and_not_at_each_file(tmp_path, memory, png):
    rows = [f"sub/{number}.png" for number in range(60)]
    memory.system.pipe({f"/set/{row}": png() for row in rows[1:]} | {f"/set/{rows[5][:-4]}.txt": b"five"})
    memory.system.pipe("/set/all.txt", "\n".join(rows).encode())
    asked = []
    info = type(memory.system).info

    def noted(self, where):
        asked.append(where)
        return info(self, where)

    memory.patched.setattr(type(memory.system), "info", noted)
    listing, funnel = listed("memory://set/all.txt", tmp_path / "kept", captions="textfile")
    assert len(listing.entries) == 59
    assert losses(funnel) == {"there is no such file": (1, ["sub/0.png"])}
    assert contents(tmp_path / "kept")["files/sub/5.txt"] == b"five"
    assert "/set/sub/0.png" not in asked  # fetching asks for others by itself


def break_down(memory, fault, names=("find", "info", "ls", "get_file")):
    def refuse(*_, **__):
        raise fault

    for name in names:
        memory.patched.setattr(type(memory.system), name, refuse)


@pytest.mark.parametrize("url", ["memory://set", "memory://set/all.txt"])
def test_without_a_connection_the_files_of_the_last_time_are_used_and_that_is_told(tmp_path, memory, png, url):
    memory.system.pipe({"/set/a.png": png(), "/set/all.txt": b"a.png"})
    listing, _ = listed(url, tmp_path / "kept")
    break_down(memory, ConnectionRefusedError("nobody there"))
    offline, funnel = listed(url, tmp_path / "kept")
    assert offline == listing
    assert funnel.notes == [f"{url} cannot be reached (nobody there): its files are those of the last time, in {tmp_path / 'kept/files'}"]
    with pytest.raises(InputError, match=rf"{url} cannot be reached \(nobody there\)$"):
        listed(url, tmp_path / "elsewhere")


def test_an_interrupted_fetch_goes_on_where_it_stopped(tmp_path, memory, png):
    memory.system.pipe({f"/set/{number}.png": png(number) for number in range(6)})
    whole, kept, others = type(memory.system).get_file, tmp_path / "kept", threading.Barrier(5)
    begun = threading.Event()

    def sometimes(self, where, target, **more):
        if where == "/set/4.png":
            begun.wait(60)
            with open(target, "wb") as half:
                half.write(b"half")
            raise TimeoutError("too slow")
        others.wait(60)
        begun.set()
        time.sleep(0.05)
        whole(self, where, target, **more)

    with memory.patched.context() as patched:
        patched.setattr(type(memory.system), "get_file", sometimes)
        with pytest.raises(InputError, match=r"memory://set: 1 of 6 files could not be fetched; 4\.png: too slow.*start again to go on"):
            listed("memory://set", kept)
        patched.setattr(type(memory.system), "find", lambda *_, **__: (_ for _ in ()).throw(OSError("off")))
        with pytest.raises(InputError, match=r"cannot be reached \(off\); 1 of its 6 files are not here yet"):
            listed("memory://set", kept)
    assert sorted(contents(kept)) == [f"files/{number}.png" for number in (0, 1, 2, 3, 5)]
    memory.fetched.clear()
    assert len(listed("memory://set", kept)[0].entries) == 6
    assert memory.fetched == ["/set/4.png"]
    assert list((kept / "partial").iterdir()) == []


def test_several_that_fetch_the_same_fetch_each_file_once(tmp_path, memory, png):
    memory.system.pipe({f"/set/{number}.png": png(number) for number in range(8)})
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: names(listed("memory://set", tmp_path / "kept")[0]), range(3)))
    assert found == [[f"{number}.png" for number in range(8)]] * 3
    assert sorted(memory.fetched) == [f"/set/{number}.png" for number in range(8)]


def test_a_file_that_comes_short_is_asked_for_again(tmp_path, memory, png):
    memory.system.pipe("/set/a.png", png())
    whole, times = type(memory.system).get_file, []

    def short(self, where, target, **more):
        whole(self, where, target, **more)
        times.append(where)
        if len(times) == 1:
            os.truncate(target, 10)

    memory.patched.setattr(type(memory.system), "get_file", short)
    assert names(listed("memory://set", tmp_path / "kept")[0]) == ["a.png"]
    assert len(times) == 2
    assert contents(tmp_path / "kept")["files/a.png"] == png()


def test_a_file_that_may_not_be_read_is_named_and_a_folder_stops(tmp_path, memory, png):
    memory.system.pipe({"/set/a.png": png(), "/set/b.png": png()})
    whole = type(memory.system).get_file

    def guarded(self, where, target, **more):
        if where == "/set/b.png":
            raise PermissionError("Forbidden")
        whole(self, where, target, **more)

    memory.patched.setattr(type(memory.system), "get_file", guarded)
    listing, funnel = listed("memory://set", tmp_path / "kept")
    assert names(listing) == ["a.png"]
    assert (funnel.total, losses(funnel)) == (2, {"may not be read (Forbidden)": (1, ["b.png"])})
    break_down(memory, PermissionError("Forbidden"))
    with pytest.raises(
        InputError, match=r"memory://set may not be read .Forbidden.; its file system takes credentials from the environment"
    ):
        listed("memory://set", tmp_path / "kept")


def test_nothing_at_the_url_is_told_and_the_copy_stays(tmp_path, memory, png):
    memory.system.pipe("/set/a.png", png())
    listed("memory://set", tmp_path / "kept")
    memory.system.rm("/set/a.png")
    for url in ("memory://set", "memory://set/all.csv"):
        with pytest.raises(InputError, match=f"there is nothing at {url}"):
            listed(url, tmp_path / "kept")
    assert "files/a.png" in contents(tmp_path / "kept")


def test_what_fills_the_disk_is_told_as_that(tmp_path, memory, png):
    memory.system.pipe("/set/a.png", png())
    break_down(memory, OSError(28, "No space left on device"), ["get_file"])
    with pytest.raises(InputError, match=r"cache_dir: what memory://set has cannot be kept \(No space left on device\)"):
        listed("memory://set", tmp_path / "kept")


def test_a_mask_s_files_come_without_captions(tmp_path, memory, png):
    memory.system.pipe({"/set/a.png": png(), "/set/a.txt": b"caption"})
    table = MaskTable(kind="mask", of="set", path="memory://set")
    listing = list_files(table, MaskKind(table, Facts()), tmp_path / "kept", Funnel("masks"))
    assert (names(listing), list(contents(tmp_path / "kept"))) == (["a.png"], ["files/a.png"])


def test_unknown_protocols_and_missing_packages_are_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"gopher://x/y: nothing is known of gopher://; fsspec reads .*s3"):
        listed("gopher://x/y", tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://bucket/set needs a package that is not installed .*: pip install gcsfs"):
        listed("gs://bucket/set", tmp_path)


@pytest.fixture
def web(tmp_path):
    """A web server of the folder `site`; `asked` names what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"GET {self.path}")
            super().do_GET()

        def do_HEAD(self):
            asked.append(f"HEAD {self.path}")
            super().do_HEAD()

        def log_message(self, *_):
            pass

    site = tmp_path / "site"
    site.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remote, "PAUSE", 0.0)

        def stop():
            server.shutdown()
            server.server_close()
            thread.join()

        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", site=site, asked=asked, stop=stop)
        if thread.is_alive():
            stop()


@pytest.fixture(scope="module")
def bucket():
    """A bucket on an S3 server of this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "testing")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        patched.setattr(remote, "PAUSE", 0.0)
        patched.setattr(remote, "ATTEMPTS", 1)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield SimpleNamespace(put=lambda key, body: client.put_object(Bucket="bucket", Key=key, Body=body), client=client, server=server)
        server.stop()


def test_a_folder_of_a_bucket_is_fetched_and_bad_names_are_told(tmp_path, bucket, png):
    for key in ("a.png", "sub/b.png", "a//c.png", "../up.png", "sub/old.gif", f"{'n' * 300}.png", "snow ☃.png", ".x/h.png", "sub/"):
        bucket.put(f"one/{key}", png() if key.endswith("png") else b"")
        bucket.put(f"one/{key}.txt", b"never asked for")
    bucket.put("one/a.txt", "ein Bär".encode())
    bucket.put("one-and-a-half/d.png", png())
    listing, funnel = listed("s3://bucket/one", tmp_path / "kept", captions="textfile")
    assert names(listing) == ["a.png", "snow ☃.png", "sub/b.png"]
    assert (tmp_path / "kept/files/a.txt").read_text() == "ein Bär"
    assert (tmp_path / "kept/files/sub/b.png").read_bytes() == png()
    bad = "its name cannot be that of a file on this machine; rename it"
    assert losses(funnel)[bad] == (3, ["../up.png", "a//c.png", f"{'n' * 300}.png"])
    assert losses(funnel)[".gif is not read; make it .jpeg, .jpg, .png or .webp"] == (1, ["sub/old.gif"])
    assert (funnel.total, funnel.passed("readable")) == (7, 3)
    assert not (tmp_path / "up.png").exists()

    state = (tmp_path / "kept/files/a.png").stat().st_mtime_ns, (tmp_path / "kept/files/sub/b.png").stat().st_ino
    changed = bytearray(png())
    changed[-1] ^= 1  # of the same size
    bucket.put("one/sub/b.png", bytes(changed))
    listed("s3://bucket/one", tmp_path / "kept", captions="textfile")
    assert (tmp_path / "kept/files/a.png").stat().st_mtime_ns == state[0]
    assert (tmp_path / "kept/files/sub/b.png").read_bytes() == bytes(changed)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_file_list_in_a_bucket_is_read(tmp_path, bucket, png, ending, monkeypatch):
    monkeypatch.setattr(remote, "WORTH_LISTING", 5)
    for number in range(6):
        bucket.put(f"two/pictures/{number}.png", png())
    if ending == ".csv":
        bucket.put("two/list.csv", "path,text\n" + "".join(f"pictures/{number}.png,caption {number}\n" for number in range(7)))
    else:
        rows = [{"path": f"pictures/{number}.png", "text": f"caption {number}"} for number in range(7)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
        bucket.put("two/list.parquet", (tmp_path / "list.parquet").read_bytes())
    listing, funnel = listed(f"s3://bucket/two/list{ending}", tmp_path / "kept", captions="column")
    assert {entry.name: entry.columns["text"] for entry in listing.entries} == {f"pictures/{n}.png": f"caption {n}" for n in range(6)}
    assert losses(funnel) == {"there is no such file": (1, ["pictures/6.png"])}


def test_buckets_that_are_not_there_or_do_not_answer_are_told(tmp_path, bucket, png, monkeypatch):
    bucket.put("three/a.png", png())
    for url in ("s3://no-such-bucket/set", "s3://bucket/nothing", "s3://bucket/nothing.csv"):
        with pytest.raises(InputError, match=f"there is nothing at {url}"):
            listed(url, tmp_path / "kept")
    listing, _ = listed("s3://bucket/three", tmp_path / "kept")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    offline, funnel = listed("s3://bucket/three", tmp_path / "kept")
    fsspec.filesystem("s3").clear_instance_cache()
    assert offline == listing
    assert "s3://bucket/three cannot be reached (" in funnel.notes[0]


def test_a_folder_of_a_web_server_is_fetched_once(tmp_path, web):
    for name in ("a.png", "sub dir/b #1 é.png"):
        picture(web.site / "set" / name)
        (web.site / "set" / name).with_suffix(".txt").write_text(name)
    listing, funnel = listed(f"{web.url}/set", tmp_path / "kept", captions="textfile")
    assert names(listing) == ["a.png", "sub dir/b #1 é.png"]
    assert contents(tmp_path / "kept")["files/sub dir/b #1 é.txt"].decode() == "sub dir/b #1 é.png"
    assert contents(tmp_path / "kept")["files/a.png"] == (web.site / "set/a.png").read_bytes()
    web.asked.clear()
    assert listed(f"{web.url}/set", tmp_path / "kept", captions="textfile")[0] == listing
    assert [line for line in web.asked if line.startswith("GET") and line.endswith(("png", "txt"))] == []

    picture(web.site / "set" / "a.png", (64, 64))
    os.utime(web.site / "set" / "a.png", (1, 1))
    listed(f"{web.url}/set", tmp_path / "kept", captions="textfile")
    assert [line for line in web.asked if line.startswith("GET") and line.endswith(("png", "txt"))] == ["GET /set/a.png"]
    web.stop()
    offline, funnel = listed(f"{web.url}/set", tmp_path / "kept", captions="textfile")
    assert offline == listing
    assert "cannot be reached" in funnel.notes[0]


def test_a_file_list_of_a_web_server_may_be_signed_and_its_secrets_are_not_shown(tmp_path, web):
    picture(web.site / "a b.png")
    (web.site / "a b.txt").write_text("caption")
    (web.site / "list.jsonl").write_text('{"file": "a b.png"}\n{"file": "gone.png"}')
    url = f"{web.url}/list.jsonl?token=secret"
    listing, funnel = listed(url, tmp_path / "kept", captions="textfile")
    assert names(listing) == ["a b.png"]
    assert losses(funnel) == {"there is no such file": (1, ["gone.png"])}
    assert sorted(contents(tmp_path / "kept")) == ["files/a b.png", "files/a b.txt", "files/list.jsonl"]
    assert "secret" not in str(funnel)
    web.stop()
    assert listed(url, tmp_path / "kept", captions="textfile")[0] == listing
    with pytest.raises(InputError) as raised:
        listed(url.replace("://", "://user:secret@"), tmp_path / "elsewhere")
    assert f"{web.url}/list.jsonl cannot be reached" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_web_address_that_is_not_there_is_told(tmp_path, web):
    for url in (f"{web.url}/gone", f"{web.url}/gone.csv"):
        with pytest.raises(InputError, match=f"there is nothing at {url}"):
            listed(url, tmp_path / "kept")
