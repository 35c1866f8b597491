"""The packed store: the same bags as the files', written once, whole or not at all."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import zlib
from collections import namedtuple
from dataclasses import replace
from functools import partial

import pytest
import torch

from milbench import MilbenchError
from milbench.bags import Bag
from milbench.datasets.packed import MAGIC, packed

SIZES = {"a": 1, "b": 37, "c": 257, "d": 8}
Usage = namedtuple("Usage", "total used free")


def read(id, halved=False, d=5):
    """Odd sizes; b has no coordinates, c is a case of two slides, d has coordinates of another type."""
    generator = torch.Generator().manual_seed(ord(id))
    n = SIZES[id]
    features = torch.randn(n, d, generator=generator)
    return Bag(
        features.half().float() if halved else features,
        None if id == "b" else torch.randint(0, 10**6, (n, 2), generator=generator).to(torch.int32 if id == "d" else torch.int64),
        None if id == "b" else 448.5,
        slide_id=id,
        case_id=f"patient {id}",
        slide_index=torch.arange(n) // 200 if id == "c" else None,
        source=f"features/{id}.h5",
    )


def pack(folder, source=read, dtype="float32", fingerprint="sha256:1", name="toy uni 20x", in_dim=5):
    return packed(source, SIZES, in_dim=in_dim, dtype=dtype, fingerprint=fingerprint, name=name, folder=folder)


def same(one, other):
    for field in ("features", "coords", "slide_index"):
        a, b = getattr(one, field), getattr(other, field)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert [getattr(one, f) for f in ("step", "slide_id", "case_id", "source")] == [
        getattr(other, f) for f in ("step", "slide_id", "case_id", "source")
    ]
    return True


def index(get):
    """What the end of the file says of each bag: index, its length, its checksum, MAGIC."""
    content = get.path.read_bytes()
    end = len(content) - len(MAGIC) - 16
    length = int.from_bytes(content[end : end + 8], "little")
    return json.loads(content[end - length : end])["bags"]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bags_are_those_of_the_files(tmp_path, dtype):
    source = partial(read, halved=dtype == "float16")
    get = pack(tmp_path / "new" / "folder", source, dtype)
    for id in ["c", "a", "d", "b", "c"]:
        assert same(get(id), source(id))
    same(get("c").to("cpu"), source("c"))
    assert torch.equal(get("c").grid(), source("c").grid())


def test_float16_on_request_rounds_the_same_with_and_without_a_pack(tmp_path):
    get = pack(tmp_path, dtype="float16")
    without = pack(None, dtype="float16")
    for id in SIZES:
        assert not torch.equal(get(id).features, read(id).features)
        assert torch.equal(get(id).features, read(id).features.half().float())
        assert same(without(id), get(id))
    assert same(pack(None)("a"), read("a"))


def test_features_too_large_for_float16_are_refused_with_their_slide(tmp_path):
    large = lambda id: read(id).with_features(read(id).features * 1e6 if id == "d" else read(id).features)  # noqa: E731
    says = r"slide d \(features/d\.h5\): values up to .*e\+06 do not fit into float16, .*; take float32 for this dataset"
    with pytest.raises(MilbenchError, match=says):
        pack(tmp_path, large, "float16")("a")
    assert files(tmp_path) == []
    with pytest.raises(MilbenchError, match=says):
        pack(None, large, "float16")("d")


def test_the_files_are_read_once_and_only_when_a_bag_is_asked_for(tmp_path):
    asked = []

    def source(id):
        asked.append(id)
        return read(id)

    get = pack(tmp_path, source)
    assert asked == []
    assert files(tmp_path) == []
    get("b"), get("b"), get("a")
    assert asked == list(SIZES)
    told = []
    again = pack(tmp_path, source)
    again.build(told.append)
    assert same(again("c"), read("c"))
    assert asked == list(SIZES)
    assert told == []
    assert files(tmp_path) == [get.path.name]
    assert get.path.stat().st_size <= get.bytes_needed


def test_features_are_views_of_the_file_and_memory_does_not_grow(tmp_path):
    n, d, count = 20_000, 64, 12  # 5 MB a bag
    sizes = {str(i): n for i in range(count)}
    get = packed(
        lambda id: Bag(torch.full((n, d), float(id)), slide_id=id),
        sizes, in_dim=d, dtype="float32", fingerprint="1", name="large", folder=tmp_path,
    )  # fmt: skip
    get("0")
    bags = [get(id) for id in sizes]
    assert len({bag.features.untyped_storage().data_ptr() for bag in bags}) == 1, "nothing is copied"
    assert bags[0].features.untyped_storage().nbytes() == get.path.stat().st_size
    if sys.platform != "linux":
        pytest.skip("resident memory is read from /proc")

    def resident():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssFile:")) / 1024

    one = resident()
    for id in sizes:
        assert float(get(id).features.sum()) == float(id) * n * d
        assert resident() < one + 2 * 5 + 2, "more than two bags of 12"
    assert float(bags[3].features.sum()) == 3.0 * n * d, "a bag that is still held can be read"


def test_another_fingerprint_replaces_the_pack_and_only_that(tmp_path):
    old, half = pack(tmp_path), pack(tmp_path, dtype="float16")
    other, longer = pack(tmp_path, name="toy uni"), pack(tmp_path, name="toy uni 20x.v2")
    for get in (old, half, other, longer):
        get("a")
    assert len(files(tmp_path)) == 4
    changed = partial(read, halved=True)
    new = pack(tmp_path, changed, fingerprint="sha256:2")
    assert same(new("b"), changed("b"))
    assert files(tmp_path) == sorted(path.name for path in (new.path, other.path, longer.path))
    assert same(old("b"), read("b")), "who has the old one open goes on with it"


def test_a_pack_is_checked_by_what_it_says_of_itself(tmp_path):
    first = pack(tmp_path)
    first("a")
    impostor = pack(tmp_path, fingerprint="sha256:2")
    shutil.copy(first.path, impostor.path)
    impostor("a")
    assert b"sha256:2" in impostor.path.read_bytes()
    fewer = packed(read, {"a": 1}, in_dim=5, dtype="float32", fingerprint="sha256:2", name="toy uni 20x", folder=tmp_path)
    fewer.build()
    assert list(index(fewer)) == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"\x89HDF\r\n\x1a\n" + b"\0" * 5000,
        lambda content: MAGIC + b"[1, 2]" + (6).to_bytes(8, "little") + MAGIC,
        lambda content: content[: -len(MAGIC) - 8] + (2**60).to_bytes(8, "little") + MAGIC,
    ],
    ids=["empty", "ten bytes", "half", "one byte short", "one byte more", "foreign", "foreign index", "absurd length"],
)
def test_a_damaged_pack_is_written_again_and_that_is_said(tmp_path, damage, caplog):
    first = pack(tmp_path)
    first("a")
    whole = first.path.read_bytes()
    first.path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "milbench"):
        again = pack(tmp_path)
        assert all(same(again(id), read(id)) for id in SIZES)
    assert "is damaged or no pack of these features; it is written again" in caplog.text
    assert first.path.read_bytes() == whole


def damaged(get, at, content):
    with get.path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize("array", ["features", "coords", "slides"])
@pytest.mark.parametrize("how", ["bit", "hole", "exchange"])
def test_a_bag_that_is_not_what_was_written_is_an_error_and_the_pack_is_made_again(tmp_path, array, how):
    first = pack(tmp_path)
    first("a")
    whole, at = first.path.read_bytes(), index(first)["c"]["arrays"][array]
    content = {"bit": bytes([whole[at + 1500] ^ 4]), "hole": bytes(512), "exchange": whole[at + 1600 : at + 1604]}[how]
    damaged(first, at + 1500, content)
    get = pack(tmp_path)
    assert all(same(get(id), read(id)) for id in "abd"), "other bags are sound"
    with pytest.raises(MilbenchError) as caught:
        get("c")
    says = str(caught.value)
    assert says.startswith(f"slide c: its bytes in the pack {get.path} are not those that were written")
    assert says.endswith("The pack is removed, and the next run writes it again: milbench run --retry-failed")
    assert not get.path.exists()
    assert all(same(get(id), read(id)) for id in SIZES)
    assert get.path.read_bytes() == whole


def test_a_flipped_bit_anywhere_never_becomes_a_number(tmp_path):
    first = pack(tmp_path)
    first("a")
    whole = bytearray(first.path.read_bytes())
    written_again = 0
    for at in [*range(0, len(whole), 131), *range(len(whole) - 40, len(whole))]:
        whole[at] ^= 1
        first.path.write_bytes(whole)
        whole[at] ^= 1
        get = pack(tmp_path)
        for id in SIZES:
            try:
                assert same(get(id), read(id)), at
            except MilbenchError:
                assert not get.path.exists()
                written_again += 1
    assert written_again > 40


def test_checksums_are_looked_at_once(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(
        zlib, "crc32", lambda content, *more, real=zlib.crc32: counted.append(len(content)) or real(content, *more)
    )
    pack(tmp_path)("a")
    get = pack(tmp_path)
    get.build()
    counted.clear()
    for _ in range(3):
        for id in SIZES:
            get(id)
    assert len(counted) == len(SIZES)


def test_who_finds_a_damaged_pack_leaves_the_new_one_of_another_process_alone(tmp_path):
    first, late = pack(tmp_path), pack(tmp_path)
    first("a")
    late.build()
    damaged(first, index(first)["c"]["at"] + 9, b"broken")
    with pytest.raises(MilbenchError):
        pack(tmp_path)("c")
    other = pack(tmp_path)
    assert same(other("c"), read("c"))
    with pytest.raises(MilbenchError, match="slide c"):  # of the old file, which it has mapped
        late("c")
    assert other.path.exists()
    assert same(late("c"), read("c"))


def test_a_damaged_pack_that_cannot_be_removed_stays_an_error(tmp_path, monkeypatch):
    first = pack(tmp_path)
    first("a")
    damaged(first, index(first)["c"]["at"] + 9, b"broken")
    get = pack(tmp_path)

    def refuse(path, **how):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(get.path), "unlink", refuse)
    for _ in range(2):
        with pytest.raises(MilbenchError, match=r"slide c: .*The pack cannot be removed \(Permission denied\): remove it"):
            get("c")


def test_owners_of_packs_of_one_name_leave_each_other_alone(tmp_path):
    make = partial(packed, read, SIZES, in_dim=5, dtype="float32", name="toy uni 20x", folder=tmp_path)
    (tmp_path / "toy-uni-20x.float32.0123456789abcdef.pack").write_bytes(b"milbench pack 1\n and what it held")
    for fingerprint in ("sha256:1", "sha256:2"):
        for owner in ("mine", "yours"):
            make(fingerprint=fingerprint, owner=owner)("a")
            mine = [path for path in tmp_path.glob("*.pack") if f".{owner}." in path.name]
            assert [make(fingerprint=fingerprint, owner=owner).path] == mine, "its own old one is removed"
    assert len(list(tmp_path.glob("*.pack"))) == 2, "and what nothing reads any more"
    told = []
    for owner in ("mine", "yours") * 3:
        make(fingerprint="sha256:2", owner=owner).build(told.append)
    assert told == []


def test_a_pack_with_another_field_opens_its_own_file(tmp_path):
    one = pack(tmp_path)
    one("a")
    other = replace(one, fingerprint="sha256:2", direct=partial(read, halved=True))
    assert same(other("b"), read("b", halved=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MilbenchError, MemoryError])
def test_an_interrupted_build_leaves_no_file(tmp_path, error):
    def source(id):
        if id == "c":
            raise error("stopped")
        return read(id)

    with pytest.raises(error):
        pack(tmp_path, source)("a")
    assert files(tmp_path) == []
    assert same(pack(tmp_path)("a"), read("a"))


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for fingerprint in ("sha256:1", "sha256:0"):
        left = pack(tmp_path, fingerprint=fingerprint).path
        left.with_name(left.name + ".part").write_bytes(b"half a pack")
    get = pack(tmp_path)
    get("a")
    assert files(tmp_path) == [get.path.name]


def test_a_disk_that_is_too_small_is_found_before_writing(tmp_path, monkeypatch):
    get = pack(tmp_path, partial(read, d=5))
    old = pack(tmp_path, fingerprint="sha256:0")
    old("a")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    space = get.bytes_needed - old.path.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, space - 1))
    with pytest.raises(
        MilbenchError, match=r"packing toy-uni-20x needs 0\.0 MB in .*, where 0\.0 MB are free; set MILBENCH_CACHE .*--no-pack"
    ):
        get("a")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, space))
    assert same(get("a"), read("a")), "the old pack's room counts"


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MilbenchError, match="No space left on device; set MILBENCH_CACHE"):
        pack(tmp_path)("a")
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MilbenchError, match=r"packing toy-uni-20x into .*file: .*; set MILBENCH_CACHE"):
        pack(tmp_path / "file")("a")
    get = pack(tmp_path)
    get.path.mkdir()
    with pytest.raises(MilbenchError, match="Is a directory"):
        get("a")


def test_a_bag_that_is_wrong_stops_the_build_and_is_named(tmp_path):
    nan = lambda id: read(id).with_features(read(id).features / (0 if id == "c" else 1))  # noqa: E731
    with pytest.raises(MilbenchError, match=r"slide c \(features/c\.h5\): 257 of 257 patches hold NaN or infinite"):
        pack(tmp_path, nan)("a")
    with pytest.raises(MilbenchError, match=r"slide a .* features are 6 wide, the dataset's are 5"):
        pack(tmp_path, partial(read, d=6))("a")
    short = lambda id: Bag(read(id).features[:1], slide_id=id, source="x.h5")  # noqa: E731
    with pytest.raises(MilbenchError, match=r"slide b \(x\.h5\): 1 instances where 37 were counted"):
        pack(tmp_path, short)("a")
    assert files(tmp_path) == []
    with pytest.raises(MilbenchError, match="packed as float16 or float32, not bfloat16"):
        pack(tmp_path, dtype="bfloat16")


def slowly(id, log):
    with open(log, "a") as file:
        file.write(f"{id}\n")
    time.sleep(0.05)
    return read(id)


def worker(folder, log, meet, out):
    get = pack(folder, partial(slowly, log=log))
    meet.wait(60)
    out.put(all(same(get(id), read(id)) for id in SIZES))


def test_two_processes_at_once_write_it_once(tmp_path):
    context = multiprocessing.get_context("fork")  # which imports nothing anew
    meet, out, log = context.Barrier(2), context.SimpleQueue(), tmp_path / "log"
    processes = [context.Process(target=worker, args=(tmp_path / "cache", log, meet, out)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [out.get() for _ in processes] == [True] * 2
    assert log.read_text().split() == list(SIZES)


def terminated(folder):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def source(id):
        if id == "c":
            os.kill(os.getpid(), signal.SIGTERM)
        return read(id)

    pack(folder, source)("a")


def test_a_writer_that_is_terminated_leaves_no_file(tmp_path):
    """As the workers of a run are when it is interrupted: SIGTERM becomes SystemExit."""
    writer = multiprocessing.get_context("fork").Process(target=terminated, args=(tmp_path,))
    writer.start()
    writer.join()
    assert writer.exitcode == 1
    assert files(tmp_path) == []
