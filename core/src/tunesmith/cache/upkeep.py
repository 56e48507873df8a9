"""Looking after a cache: what is in it and who uses it, whether it is sound, and what could go."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..data.database import explained
from ..errors import InputError
from .disk import IN_USE
from .index import INDEX, PLACE, Place, changing, open_index, unpacked_keys
from .locks import Writer, described, is_alive, lock
from .shards import Shards
from .users import User, read_user


@dataclass(frozen=True)
class Amount:
    """So many entries, and their bytes on disk."""

    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Use:
    """What of a cache a config uses, as it was when it last ran; `lacks` counts what it would have to encode."""

    user: User
    exists: bool
    amount: Amount
    lacks: int


@dataclass(frozen=True)
class Overview:
    """What is in a cache. `damaged` is what its files are too short for: only `verify` reads every byte.

    `unused` is what no config that exists used when it last ran; `waste` are bytes of the files that hold no entry.
    """

    folder: Path
    total: Amount
    fields: dict[str, Amount]
    uses: list[Use]
    damaged: Amount
    unused: Amount
    files: int
    waste: int
    in_use_by: list[str]


@dataclass(frozen=True)
class Damaged:
    """An entry whose bytes are not those that were written."""

    key: str
    field: str
    shard: str
    offset: int


@dataclass
class Pruning:
    """What a pruning removes, or would remove."""

    unused: Amount
    configs_gone: list[User]
    freed: int = 0
    deleted: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)


def overview(folder: Path) -> Overview:
    """What is in a cache, found without reading the entries; InputError if there is none."""
    with _opened(folder) as connection:
        users = _load_uses(connection)
        ends = {shard: _size(folder / shard) for (shard,) in connection.execute("SELECT DISTINCT shard FROM entries")}
        short = [connection.execute(_SHORT, (shard, size)).fetchone() for shard, size in ends.items()]
        uses = []
        for number, user in enumerate(users):
            (wanted,) = connection.execute("SELECT COUNT(*) FROM used WHERE user = ?", (number,)).fetchone()
            amount = _amount(connection, "key IN (SELECT key FROM used WHERE user = ?)", number)
            uses.append(Use(user, user.exists, amount, wanted - amount.entries))
        total = _amount(connection, "TRUE")
        fields = connection.execute("SELECT field, COUNT(*), SUM(length) FROM entries GROUP BY field ORDER BY field")
        sizes = _shard_sizes(folder)
        return Overview(
            folder=folder,
            total=total,
            fields={str(name): Amount(count, size) for name, count, size in fields},
            uses=sorted(uses, key=lambda use: use.user),
            damaged=Amount(sum(count for count, _ in short), sum(size or 0 for _, size in short)),
            unused=_amount(connection, _UNUSED),
            files=len(sizes),
            waste=sum(max(0, size - live) for size, live in _live(connection, sizes).values()),
            in_use_by=_writers(folder),
        )


def verify(folder: Path, forget: bool, advance: Callable[[int], None] = lambda count: None) -> tuple[int, list[Damaged]]:
    """Read every byte of every entry: how many there are, and which are damaged; these are forgotten if asked.

    `advance` is told of bytes read.
    """
    damaged: list[Damaged] = []
    with _opened(folder) as connection:
        shards = Shards(folder, Writer(folder))
        names = [str(shard) for (shard,) in connection.execute("SELECT DISTINCT shard FROM entries ORDER BY shard")]
        count = 0
        for shard in names:
            query = f"SELECT key, field, {PLACE} FROM entries WHERE shard = ? ORDER BY offset"
            for key, what, *place in connection.execute(query, (shard,)).fetchall():
                count += 1
                at = Place(*place)
                if not shards.is_whole(at):
                    damaged.append(Damaged(key, what, shard, at.offset))
                advance(at.length)
        shards.close()
        if forget:
            with changing(connection):
                gone = [(one.key, one.shard, one.offset) for one in damaged]
                connection.executemany("DELETE FROM entries WHERE key = ? AND shard = ? AND offset = ?", gone)
    return count, damaged


def prune(folder: Path, remove: bool) -> Pruning:
    """Find what no config that exists uses any more; remove it if asked, and the bytes that hold no entry.

    InputError if it is to be removed while the cache is in use. A crash leaves every entry that is used where it was.
    """
    with _opened(folder) as connection, _alone(folder, remove):
        gone = [user for user in _load_uses(connection) if not user.exists]
        pruning = Pruning(_amount(connection, _UNUSED), gone)
        if remove:
            connection.execute("PRAGMA synchronous = FULL")
            with changing(connection):
                connection.execute(f"DELETE FROM entries WHERE {_UNUSED}")
                connection.execute("DELETE FROM claims")
                connection.executemany("DELETE FROM uses WHERE user = ?", [(user.text,) for user in gone])
            for file in folder.glob("writer-*.lock"):
                file.unlink()
        used = "TRUE" if remove else f"NOT ({_UNUSED})"
        for shard, (size, live) in sorted(_live(connection, _shard_sizes(folder), used).items()):
            if live >= size or (not remove and Shards(folder, Writer(folder)).grows(shard)):
                continue
            (pruning.rewritten if live else pruning.deleted).append(shard)
            pruning.freed += size - live
            if remove:
                _compact(connection, folder, shard)
    return pruning


_SHORT = "SELECT COUNT(*), SUM(length) FROM entries WHERE shard = ? AND offset + length > ?"
_UNUSED = "key NOT IN (SELECT key FROM needed)"


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    if not (folder / INDEX).is_file():
        raise InputError(f"there is no cache in {folder}; name its folder with --dir, or a config that uses it")
    connection = open_index(folder)
    try:
        with explained(folder / INDEX):
            yield connection
    finally:
        connection.close()


@contextmanager
def _alone(folder: Path, remove: bool) -> Iterator[None]:
    """Keep everybody else out of the cache, if something is to be removed."""
    if not remove:
        yield
        return
    held = lock(folder / IN_USE)
    if held is None:
        who = " and ".join(_writers(folder)) or "another process"
        raise InputError(f"the cache in {folder} is in use by {who}, and nothing was removed; prune it when no run uses it")
    with held:
        yield


def _load_uses(connection: sqlite3.Connection) -> list[User]:
    """Fill the tables `used` (number of the user, key) and `needed` (keys of configs that exist); the users."""
    connection.execute("CREATE TEMP TABLE used (user INT, key TEXT, PRIMARY KEY (user, key)) WITHOUT ROWID")
    connection.execute("CREATE TEMP TABLE needed (key TEXT PRIMARY KEY) WITHOUT ROWID")
    texts = [text for (text,) in connection.execute("SELECT DISTINCT user FROM uses ORDER BY user")]
    users = [read_user(text) for text in texts]
    with connection:
        connection.execute("BEGIN")
        for number, (text, user) in enumerate(zip(texts, users, strict=True)):
            parts = connection.execute("SELECT part FROM uses WHERE user = ?", (text,)).fetchall()
            for (part,) in parts:
                (packed,) = connection.execute("SELECT keys FROM uses WHERE user = ? AND part = ?", (text, part)).fetchone()
                connection.executemany("INSERT OR IGNORE INTO used VALUES (?, ?)", ((number, key) for key in unpacked_keys(packed)))
            if user.exists:
                connection.execute("INSERT OR IGNORE INTO needed SELECT key FROM used WHERE user = ?", (number,))
    return users


def _amount(connection: sqlite3.Connection, where: str, *values: object) -> Amount:
    count, size = connection.execute(f"SELECT COUNT(*), SUM(length) FROM entries WHERE {where}", values).fetchone()
    return Amount(count, size or 0)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _shard_sizes(folder: Path) -> dict[str, int]:
    return {file.name: _size(file) for file in folder.glob("shard-*.bin")}


def _live(connection: sqlite3.Connection, sizes: dict[str, int], where: str = "TRUE") -> dict[str, tuple[int, int]]:
    """For each shard file its size, and how many bytes of it are entries."""
    live = dict(connection.execute(f"SELECT shard, SUM(length) FROM entries WHERE {where} GROUP BY shard"))
    return {shard: (size, live.get(shard, 0)) for shard, size in sizes.items()}


def _writers(folder: Path) -> list[str]:
    """Those who are writing to the cache now."""
    names = sorted(file.stem.removeprefix("writer-") for file in folder.glob("writer-*.lock"))
    return [described(folder, name) for name in names if is_alive(folder, name)]


def _compact(connection: sqlite3.Connection, folder: Path, shard: str) -> None:
    """Move a shard's entries to a new file, commit where they are now, and then remove the old one."""
    writer = Writer(folder)
    shards = Shards(folder, writer)
    try:
        moved: list[tuple[str, int, str]] = []
        lost: list[tuple[str]] = []
        for key, *row in connection.execute(f"SELECT key, {PLACE} FROM entries WHERE shard = ? ORDER BY offset", (shard,)).fetchall():
            place = Place(*row)
            content = shards.read(place)
            if not shards.is_whole(place):
                lost.append((key,))
                continue
            new = shards.append(content, place.codec)
            moved.append((new.shard, new.offset, key))
        shards.sync()
        made = shards.end_shard()
        with changing(connection):
            connection.executemany("UPDATE entries SET shard = ?, offset = ? WHERE key = ?", moved)
            connection.executemany("DELETE FROM entries WHERE key = ?", lost)
            connection.execute("DELETE FROM checked WHERE shard = ?", (shard,))
            state = shards.state(made) if made is not None else None
            if state is not None:
                connection.execute("INSERT INTO checked VALUES (?, ?, ?)", (made, *state))
        (folder / shard).unlink()
    except BaseException:
        unfinished = shards.end_shard()
        if unfinished is not None:
            (folder / unfinished).unlink()
        raise
    finally:
        shards.close()
        writer.end()
