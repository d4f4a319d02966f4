"""What is carried between processes: descriptors that no child inherits, and lists of any length."""

from __future__ import annotations

import os

import msgspec
import pytest

from fuse import wire


class Item(msgspec.Struct):
    text: str


def test_descriptors_that_come_are_inherited_by_nobody() -> None:
    """A holder starts programs: a FUSE device in one of them would keep a mount alive for as long as that runs."""
    ours, theirs = wire.pair()
    with wire.Channel[Item](ours, Item) as sending, wire.Channel[Item](theirs, Item) as receiving:
        sending.send(Item("two"), (0, 1))
        received = receiving.receive()
    assert received is not None
    message, fds = received
    try:
        assert (message.text, len(fds)) == ("two", 2)
        assert not any(map(os.get_inheritable, fds))
    finally:
        wire.close_all(fds)


@pytest.mark.parametrize("lengths", [[], [5], [100_000, 100_000, 10, 10], [10] * 20_000, [60_000] * 3, [200_000, 5]])
def test_portions_fit_into_messages(lengths: list[int]) -> None:
    """As many as fit, in their order, none left out; what does not fit alone comes alone."""
    items = [Item("x" * length) for length in lengths]
    portions = list(wire.portions(items))
    assert [item for portion in portions for item in portion] == items
    assert portions
    for portion in portions:
        assert len(msgspec.json.encode(portion)) < wire.MAX_MESSAGE_BYTES or len(portion) == 1
    sizes = [len(msgspec.json.encode(portion)) for portion in portions]
    assert len(portions) <= 1 + 2 * sum(sizes) // (wire.MAX_MESSAGE_BYTES - 4096)
