"""The tar walker against Python's tarfile, and against archives that lie."""

from __future__ import annotations

import io
import struct
import tarfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuse.artifact import tar
from fuse.artifact.digest import Digest
from fuse.artifact.entries import Member
from fuse.artifact.tar import Window, walk
from fuse.errors import Cancelled, InvalidArtifact
from tests.support.artifacts import Bytes, Shelf

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
GIB = 1024**3


def archive(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT, **options: Any) -> bytes:
    """An archive as Python's tarfile writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, **options) as file:
        for info, content in members:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def walked(content: bytes | Bytes, shelf: Shelf | None = None, **options: Any) -> tuple[Member, ...]:
    shelf = shelf or Shelf()
    digest = Digest.of(b"any")
    blob = content if isinstance(content, Bytes) else Bytes(content)
    shelf.add_blob(blob, digest)
    return walk(Window(shelf, digest, blob.size), where=f"layer {digest}", **options)


def rechecked(block: bytes) -> bytes:
    """A header with a right checksum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
ASCII_NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=60
)


@st.composite
def trees(draw: st.DrawFn, names: st.SearchStrategy[str]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Files, directories and links that do not collide, with paths long enough for every kind of long name."""
    components = names.filter(lambda name: name not in (".", ".."))
    paths = draw(
        st.lists(st.lists(components, min_size=1, max_size=6).map("/".join), min_size=1, max_size=8, unique=True)
    )
    found: list[tuple[tarfile.TarInfo, bytes]] = []
    files: list[str] = []
    for path in paths:
        if any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in paths if other != path):
            continue
        kind = draw(st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]))
        if kind == tarfile.LNKTYPE and not files:
            kind = tarfile.REGTYPE
        info = named(path, kind, mode=draw(st.integers(0, 0o777)), mtime=draw(st.integers(0, 2**33 - 1)))
        content = b""
        if kind == tarfile.REGTYPE:
            content = draw(st.binary(max_size=1600))
            files.append(path)
        elif kind == tarfile.LNKTYPE:
            info.linkname = draw(st.sampled_from(files))
        elif kind == tarfile.SYMTYPE:
            info.linkname = draw(st.lists(components, min_size=1, max_size=6).map("/".join))
        found.append((info, content))
    return found


def compare(content: bytes) -> None:
    """The walker sees what tarfile sees, and its offsets lead to the same bytes."""
    ours = {member.path: member for member in walked(content)}
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        theirs = {info.name: info for info in file.getmembers()}
        assert list(theirs) == list(ours)
        for name, info in theirs.items():
            member = ours[name]
            if info.isdir() or info.issym():
                assert ("d" if info.isdir() else "l") == member.kind
                assert (info.linkname if info.issym() else "") == member.target
                assert int(info.mtime) == member.mtime_ns // 10**9
                continue
            extracted = file.extractfile(info)
            assert extracted is not None
            expected = extracted.read()
            assert "f" == member.kind
            assert len(expected) == member.size
            assert expected == content[member.offset : member.offset + member.size]
            if info.isreg():
                assert info.mode == member.mode
                assert int(info.mtime) == member.mtime_ns // 10**9


@settings(max_examples=150, deadline=None)
@given(members=trees(NAMES), kind=st.sampled_from(["gnu", "pax"]))
def test_members_are_those_that_tarfile_sees(members: list[tuple[tarfile.TarInfo, bytes]], kind: str) -> None:
    """Names of any script and length, in the formats that can hold them."""
    compare(archive(*members, kind=FORMATS[kind]))


@settings(max_examples=100, deadline=None)
@given(members=trees(ASCII_NAMES))
def test_ustar_members_are_those_that_tarfile_sees(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Names of up to 255 bytes, split between prefix and name."""
    fitting = []
    for info, content in members:
        try:
            info.tobuf(tarfile.USTAR_FORMAT)
        except ValueError:
            continue
        fitting.append((info, content))
    known = {info.name for info, _ in fitting}
    compare(
        archive(
            *[pair for pair in fitting if not pair[0].islnk() or pair[0].linkname in known], kind=tarfile.USTAR_FORMAT
        )
    )


@settings(max_examples=200, deadline=None)
@given(
    members=trees(NAMES),
    kind=st.sampled_from(sorted(FORMATS)[:2]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 1 << 16),
    mend=st.booleans(),
)
@example(members=[(named("a"), b"abc")], kind="gnu", edits=[(0, 0)], cut=511, mend=False)
def test_damaged_archives_are_refused_or_read_within_bounds(
    members: list[tuple[tarfile.TarInfo, bytes]], kind: str, edits: list[tuple[int, int]], cut: int, mend: bool
) -> None:
    """No damage raises anything but InvalidArtifact, asks for bytes outside the blob, or yields a member outside it."""
    content = bytearray(archive(*members, kind=FORMATS[kind]))
    for position, value in edits:
        content[position % len(content)] = value
    if mend:
        content[:512] = rechecked(bytes(content[:512]))
    damaged = bytes(content[: cut % (len(content) + 1)]) if cut % 3 == 0 else bytes(content)
    try:
        found = walked(damaged)
    except InvalidArtifact:
        return
    assert all(0 <= member.offset <= member.offset + member.size <= len(damaged) for member in found)
    assert len({member.path for member in found}) == len(found)


def sparse(size: int, pieces: dict[int, bytes]) -> Bytes:
    """A blob of zeros with a few pieces in it; no memory holds it whole."""

    def read(offset: int, length: int) -> bytes:
        assert length <= 8 * 1024 * 1024
        content = bytearray(length)
        for at, piece in pieces.items():
            low, high = max(offset, at), min(offset + length, at + len(piece))
            if low < high:
                content[low - offset : high - offset] = piece[low - at : high - at]
        return bytes(content)

    return Bytes(size=size, read=read)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 40 * GIB + 5, 3 * 1024 * GIB])
def test_members_over_8_gib_are_found(kind: str, size: int) -> None:
    """Octal digits end at 8 GiB: PAX says the size in a record, GNU in base 256; what follows is found behind them."""
    big = named("model.safetensors", size=size, mtime=7).tobuf(FORMATS[kind])
    small = named("config.json", size=2).tobuf(FORMATS[kind])
    after = len(big) + -(-size // 512) * 512
    content = sparse(after + len(small) + 512 + 10240, {0: big, after: small, after + len(small): b"{}"})
    shelf = Shelf()

    first, second = walked(content, shelf)

    assert Member("model.safetensors", "f", 0o644, 7 * 10**9, len(big), size) == first
    assert Member("config.json", "f", 0o644, 0, after + len(small), 2) == second
    assert 2 >= len(shelf.reads)


def go_archive(name: str, size: int) -> Bytes:
    """One file, padded to 512 bytes, and exactly two blocks of zeros: how Go's writer, and so modctl, makes it."""
    header = named(name, size=size).tobuf(tarfile.PAX_FORMAT)
    return sparse(len(header) + -(-size // 512) * 512 + 1024, {0: header})


def test_one_file_costs_one_small_read() -> None:
    """The norm of ModelPack: neither the data nor the end is asked for."""
    shelf = Shelf()

    (member,) = walked(go_archive("model.safetensors", 50 * GIB), shelf)

    assert 50 * GIB == member.size
    assert [(0, tar.FIRST_WINDOW)] == [(offset, length) for _, offset, length in shelf.reads]


def test_many_small_files_cost_few_reads() -> None:
    """Windows double, so that 10 000 headers in 10 MB are a handful of requests."""
    shelf = Shelf()
    content = archive(*[(named(f"{number:05}"), b"x" * 300) for number in range(10_000)], kind=tarfile.USTAR_FORMAT)

    found = walked(content, shelf)

    assert 10_000 == len(found)
    assert 12 >= len(shelf.reads)
    assert all(length <= tar.MAX_WINDOW for _, _, length in shelf.reads)


def test_windows_end_at_blocks_of_the_cache() -> None:
    """A window that guesses ahead does not touch one more of the blocks that are fetched whole."""
    shelf = Shelf()
    content = archive(*[(named(f"{number:05}"), b"x" * 5000) for number in range(900)])
    walked(content, shelf)

    ends = [offset + length for _, offset, length in shelf.reads]
    starts = [offset for _, offset, _ in shelf.reads]
    for start, end in zip(starts, ends, strict=True):
        assert start // 2**20 == (end - 1) // 2**20 or end % 2**20 == 0 or end == len(content)
    assert len(shelf.reads) < 12


def test_the_last_member_of_a_small_archive_without_an_end_is_seen() -> None:
    """Old writers left out the two blocks of zeros; what is at hand anyway is looked at."""
    content = archive((named("a"), b"1"), (named("b"), b"2"), kind=tarfile.USTAR_FORMAT)
    bare = content[: 4 * 512]

    assert ["a", "b"] == [member.path for member in walked(bare)]


def test_padding_to_a_tapes_record_is_the_end() -> None:
    """GNU tar fills up to 10 240 bytes with zeros."""
    content = archive((named("a"), b"x"))

    assert 10240 == len(content)
    assert ["a"] == [member.path for member in walked(content)]


def test_what_follows_the_end_does_not_count() -> None:
    """As for tar itself."""
    content = archive((named("a"), b"x"))

    assert ["a"] == [member.path for member in walked(content + archive((named("b"), b"y")))]


def test_the_later_of_two_members_with_one_name_counts() -> None:
    """`tar -r` updates an archive in this way."""
    content = archive((named("a"), b"old"), (named("b"), b"-"), (named("./a"), b"new!"))

    found = {member.path: member for member in walked(content)}

    assert b"new!" == content[found["a"].offset :][: found["a"].size]
    assert ["b", "a"] == list(found)


def test_a_hard_link_is_the_file_it_names() -> None:
    """Also through another hard link; its bytes are the member's."""
    content = archive(
        (named("blobs/x"), b"weights"),
        (named("a", tarfile.LNKTYPE, linkname="./blobs/x"), b""),
        (named("b", tarfile.LNKTYPE, linkname="a"), b""),
    )

    x, a, b = walked(content)

    assert (x.offset, x.size) == (a.offset, a.size) == (b.offset, b.size)
    assert "f" == b.kind


def test_global_pax_records_hold_until_they_are_taken_back() -> None:
    """A `g` header says something of all members after it, an `x` header of the next."""
    content = archive(
        (named("a"), b""),
        (named("b", pax_headers={"mtime": "5.25"}), b""),
        (named("c"), b""),
        pax_headers={"mtime": "1.5", "comment": "x"},
    )

    assert [1_500_000_000, 5_250_000_000, 1_500_000_000] == [member.mtime_ns for member in walked(content)]


def test_times_before_1970_are_1970() -> None:
    """No tool for models means them, and not every reader of stat can take them."""
    assert [0] == [member.mtime_ns for member in walked(archive((named("a", pax_headers={"mtime": "-5"}), b"")))]


def test_gnu_times_in_place_of_a_prefix_are_no_name() -> None:
    """GNU keeps access times where ustar has the first half of a name."""
    block = bytearray(named("a").tobuf(tarfile.GNU_FORMAT))
    block[345:357] = b"14733340111\0"

    assert ["a"] == [member.path for member in walked(rechecked(bytes(block)) + bytes(1024))]


def test_stars_shorter_prefix_ends_before_its_times() -> None:
    """star marks its headers with `tar` at the end, and keeps times behind 131 bytes of prefix."""
    block = bytearray(named("a").tobuf(tarfile.USTAR_FORMAT))
    block[345:348] = b"dir"
    block[476:488] = b"14733340111\0"
    block[508:512] = b"tar\0"

    assert ["dir/a"] == [member.path for member in walked(rechecked(bytes(block)) + bytes(1024))]


def test_v7_archives_are_read() -> None:
    """No magic, the type a NUL, a directory by its slash."""
    directory = bytearray(named("d/").tobuf(tarfile.USTAR_FORMAT))
    directory[156:157] = b"\0"
    directory[257:265] = bytes(8)
    file = bytearray(named("d/f", size=1).tobuf(tarfile.USTAR_FORMAT))
    file[156:157] = b"\0"
    file[257:265] = bytes(8)

    found = walked(rechecked(bytes(directory)) + rechecked(bytes(file)) + b"x".ljust(512, b"\0") + bytes(1024))

    assert [("d", "d"), ("d/f", "f")] == [(member.path, member.kind) for member in found]


def test_a_checksum_of_signed_characters_is_right() -> None:
    """Some old tars summed so."""
    block = named("ü").tobuf(tarfile.GNU_FORMAT)
    blank = block[:148] + b" " * 8 + block[156:]
    signed = sum(struct.unpack("512b", blank))

    assert ["ü"] == [member.path for member in walked(blank[:148] + b"%06o\0 " % signed + blank[156:] + bytes(1024))]


def test_volume_labels_are_passed_over() -> None:
    """`tar -V` writes one as a member without data."""
    label = named("backup", b"V")

    assert ["a"] == [member.path for member in walked(archive((label, b""), (named("a"), b"x")))]


@pytest.mark.parametrize(
    ("type_flag", "what"),
    [
        (b"3", "character device"),
        (b"4", "block device"),
        (b"6", "FIFO"),
        (b"S", "sparse"),
        (b"M", "volume"),
        (b"z", "unknown"),
    ],
)
def test_what_no_model_holds_is_refused(type_flag: bytes, what: str) -> None:
    """Devices and the like, by name."""
    with pytest.raises(InvalidArtifact, match=what) as caught:
        walked(rechecked(named("dev/x", type_flag).tobuf(tarfile.USTAR_FORMAT)) + bytes(1024))
    assert "dev/x" in str(caught.value)


def test_pax_sparse_files_are_refused() -> None:
    """Their bytes do not lie in the archive one after the other."""
    with pytest.raises(InvalidArtifact, match="sparse"):
        walked(archive((named("a", pax_headers={"GNU.sparse.major": "1"}), b"x")))


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "a/../../b", "/etc/passwd", "..", "a/..", "x" * 256, "/".join("d" * 65)]
)
@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_names_that_lead_out_or_are_too_long_are_refused(name: str, kind: str) -> None:
    """The error names the layer and the name."""
    with pytest.raises(InvalidArtifact) as caught:
        walked(archive((named(name), b"x"), kind=FORMATS[kind]))
    assert "layer sha256:" in caught.value.where


def test_names_that_are_not_utf8_are_refused() -> None:
    """The tree's names are text."""
    with pytest.raises(InvalidArtifact, match="UTF-8"):
        walked(archive((named("ü"), b"x"), kind=tarfile.GNU_FORMAT, encoding="latin-1"))


def test_the_directory_itself_may_be_a_member() -> None:
    """`tar -C dir .` starts with `./`."""
    assert ["", "a"] == [
        member.path for member in walked(archive((named("./", tarfile.DIRTYPE), b""), (named("./a"), b"x")))
    ]


def cut_within_data(content: bytes) -> bytes:
    return content[: 512 + 100]


def cut_within_header(content: bytes) -> bytes:
    return content[: 2 * 512 + 100]


def cut_behind_extension(content: bytes) -> bytes:
    return archive((named("n" * 150), b"x"), kind=tarfile.GNU_FORMAT)[:1024]


def wrong_checksum(content: bytes) -> bytes:
    return b"b" + content[1:]


def size_beyond_the_end(content: bytes) -> bytes:
    return rechecked(content[:124] + b"77777777777\0" + content[136:512]) + content[512:]


def negative_size(content: bytes) -> bytes:
    return rechecked(content[:124] + b"\xff" * 12 + content[136:512]) + content[512:]


def size_of_letters(content: bytes) -> bytes:
    return rechecked(content[:124] + b"0000000zzzz\0" + content[136:512]) + content[512:]


def huge_extension(content: bytes) -> bytes:
    return rechecked(named("x", b"x", size=2 * 1024 * 1024).tobuf(tarfile.USTAR_FORMAT)) + bytes(3 * 1024 * 1024)


def bad_pax(content: bytes) -> bytes:
    records = b"999 path=x\n"
    return (
        rechecked(named("x", b"x", size=len(records)).tobuf(tarfile.USTAR_FORMAT)) + records.ljust(512, b"\0") + content
    )


def bad_pax_size(content: bytes) -> bytes:
    return archive((named("a", pax_headers={"size": "-1"}), b"x"))


def hard_link_to_nothing(content: bytes) -> bytes:
    return archive((named("a", tarfile.LNKTYPE, linkname="b"), b""), (named("b"), b"x"))


def hard_link_out(content: bytes) -> bytes:
    return archive((named("a", tarfile.LNKTYPE, linkname="../../etc/shadow"), b""))


def file_and_directory(content: bytes) -> bytes:
    return archive((named("a"), b"x"), (named("a", tarfile.DIRTYPE), b""))


def empty_name(content: bytes) -> bytes:
    return archive((named("./"), b"x"))


def empty_target(content: bytes) -> bytes:
    return archive((named("a", tarfile.SYMTYPE), b""))


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_within_data, cut_within_header, cut_behind_extension, wrong_checksum, size_beyond_the_end, negative_size),
        *(
            size_of_letters,
            huge_extension,
            bad_pax,
            bad_pax_size,
            hard_link_to_nothing,
            hard_link_out,
            file_and_directory,
        ),
        *(empty_name, empty_target),
    ],
    ids=lambda damage: damage.__name__,
)
def test_archives_that_lie_are_refused(damage: Callable[[bytes], bytes]) -> None:
    """Each names the layer, for it is the layer that must be pushed again."""
    content = damage(archive((named("a"), b"x" * 200), (named("c"), b"y")))

    with pytest.raises(InvalidArtifact) as caught:
        walked(content)
    assert "layer sha256:" in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize("content", [b"", b"x" * 511, b"not a tar at all".ljust(2048, b".")])
def test_what_is_no_tar_is_refused(content: bytes) -> None:
    """Too short, or no header."""
    with pytest.raises(InvalidArtifact):
        walked(content)


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive cannot make the process hold any number of them."""
    monkeypatch.setattr(tar, "MAX_ENTRIES", 10)
    members = [(named(f"{number}"), b"") for number in range(11)]

    assert 10 == len(walked(archive(*members[:10])))
    with pytest.raises(InvalidArtifact, match="more than 10"):
        walked(archive(*members))


def test_headers_without_members_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of global headers, which are no members, is not read to its end."""
    monkeypatch.setattr(tar, "MAX_HEADERS", 1000)
    block = named("g", b"g").tobuf(tarfile.USTAR_FORMAT)
    endless = Bytes(size=1024 * GIB, read=lambda offset, length: (block * (length // 512 + 2))[offset % 512 :][:length])
    with pytest.raises(InvalidArtifact, match="headers"):
        walked(endless)


def test_names_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names, each within its limit, do not fill the memory together."""
    monkeypatch.setattr(tar, "MAX_PATHS_BYTES", 1000)
    with pytest.raises(InvalidArtifact, match="names"):
        walked(archive(*[(named(f"{number}" * 90), b"") for number in range(10, 20)]))


def test_global_records_that_mean_nothing_are_not_kept() -> None:
    """They hold for all members that follow: so many that fill the memory, or that are looked through for each member."""
    record = "".join(f"{len(str(number)) + 6} k{number}=v\n" for number in range(10, 99)).encode()
    comments = rechecked(named("g", b"g", size=len(record)).tobuf(tarfile.USTAR_FORMAT)) + record.ljust(1024, b"\0")
    content = comments + archive((named("a"), b""))
    walk_of = tar._Walk(Window(shelf := Shelf(), digest := shelf.add_blob(content), len(content)), str(digest), None)

    assert ["a"] == [member.path for member in walk_of.run()]
    assert {} == walk_of._global_pax


def test_a_blob_that_ends_early_is_refused() -> None:
    """A reader that gives fewer bytes than there should be: the descriptor lied."""
    short = Bytes(size=100_000, read=lambda offset, length: b"")
    with pytest.raises(InvalidArtifact, match="100000"):
        walked(short)


def test_the_walk_can_be_given_up() -> None:
    """Between two headers."""
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(Cancelled):
        walked(archive((named("a"), b"x")), cancel=given_up)
