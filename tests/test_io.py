"""Files are whole or absent, whatever lies in their folder; equal runs give equal bytes; keys name configurations."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from flatminima import io
from flatminima.errors import FolderInUse, UsageError, WriteFailed
from flatminima.training import read_weights, write_weights

POSIX = pytest.mark.skipif(os.name != "posix", reason="links of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@POSIX
def test_a_link_in_the_files_place_is_replaced_and_what_it_names_is_left(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "result.json").symlink_to(precious)
    io.write_whole(folder / "result.json", "new")
    assert precious.read_text() == "mine" and not (folder / "result.json").is_symlink()
    (folder / "rows").symlink_to(precious)
    with pytest.raises(UsageError, match="cannot write"):
        io.append_line(folder / "rows", "new")
    assert precious.read_text() == "mine"


@POSIX
def test_temporary_names_cannot_be_foreseen_nor_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link laid under the very name that is drawn is not followed: the file is made, or nothing is written."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    monkeypatch.setattr(io.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".{'0' * 16}.tmp").symlink_to(precious)
    with pytest.raises(UsageError, match="cannot write"):
        io.write_whole(tmp_path / "result.json", "new")
    assert precious.read_text() == "mine" and not (tmp_path / "result.json").exists()


def test_threads_of_one_process_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    """A name made of the process's number alone mixes two threads' bytes, or renames one's file away."""
    path, contents = tmp_path / "file", [bytes([65 + i]) * 20_000 for i in range(4)]
    failed: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(10):
                io.write_whole(path, content)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_bytes() in contents and names(tmp_path) == ["file"]


@POSIX
def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut after "done" may take the file's name away."""
    done: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve() else "file")
        real_sync(descriptor)

    def replace(source: str, target: str) -> None:
        done.append("rename")
        real_replace(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("which file a descriptor is can be seen in /proc only")
    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.replace", replace)
    io.write_whole(tmp_path / "file", "text")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, WriteFailed), (errno.EDQUOT, WriteFailed), (errno.EIO, WriteFailed), (errno.EACCES, WriteFailed),
     (errno.EROFS, WriteFailed), (errno.ENOENT, UsageError), (errno.ENOTDIR, UsageError),
     (errno.ENAMETOOLONG, UsageError)],
)  # fmt: skip
def test_what_the_machine_refuses_is_not_the_users_mistake(
    number: int, expected: type[Exception], tmp_path: Path
) -> None:
    """Exit codes follow from the classes: 1, and 2 for a mistake; torch's writer hides the number in a context."""

    def fail(_: object) -> None:
        raise OSError(number, os.strerror(number))

    def fail_like_torch(_: object) -> None:
        try:
            fail(None)
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from None

    for content in (fail, fail_like_torch):
        with pytest.raises(expected) as raised:
            io.write_whole(tmp_path / "file", content)
        assert isinstance(raised.value, UsageError) == (expected is UsageError)
        assert str(raised.value).count("\n") == 0 and "choose another folder" in str(raised.value)
        assert os.strerror(number) in str(raised.value), "also where torch says enforce fail"
        assert names(tmp_path) == []


def test_a_claim_clears_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f".{'a1' * 8}.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("whole")
    with io.claimed(tmp_path), pytest.raises(FolderInUse), io.claimed(tmp_path):
        pass
    assert names(tmp_path) == [io.LOCK, "mine.tmp"]


def test_what_was_left_where_others_write_goes_a_day_later(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{c * 16}.tmp" for c in "ab")
    for file in (old, new):
        file.touch()
    os.utime(old, (1, 1))
    io.clear_left(tmp_path, io.DAY)
    assert not old.exists() and new.exists()


@POSIX
def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / io.LOCK).symlink_to(precious)
    with pytest.raises((UsageError, WriteFailed)), io.claimed(folder):
        pass
    assert precious.read_text() == "mine"


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    """safetensors writes a header's metadata in the order of a randomly seeded table."""
    tensors = {"b": torch.arange(5.0), "a": torch.ones(2, 3, dtype=torch.bfloat16), "n": torch.tensor(3)}
    metadata = {f"key {i}": "ä" * i for i in range(6)}
    contents = set()
    for _ in range(8):
        write_weights(tensors, tmp_path / "w.safetensors", metadata)
        contents.add((tmp_path / "w.safetensors").read_bytes())
    assert len(contents) == 1
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())
    from safetensors import safe_open

    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == metadata | {"format": "pt"}


def test_a_key_names_its_document_and_its_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    assert io.run_key({"a": 1, "b": 2}) == io.run_key({"b": 2, "a": 1}) != io.run_key({"a": 1, "b": 3})
    first = io.run_key({"a": 1}, content=file)
    file.write_bytes(b"2")
    assert first != io.run_key({"a": 1}, content=file)
    assert len(io.run_key([], digest_size=12)) == 24


@POSIX
def test_a_folder_that_its_owner_removes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends removes its folder under whoever waits for it, who said that it cannot be written."""
    folder = tmp_path / "run.part"
    with contextlib.ExitStack() as owner:
        owner.enter_context(io.claimed(folder))

        def end(_: float) -> None:
            shutil.rmtree(folder)
            owner.close()

        monkeypatch.setattr("time.sleep", end)
        with io.claimed(folder, wait=60):
            assert names(folder) == [io.LOCK]
