"""Rectangles whose areas are sizes, as square as can be.

Squarified treemaps: Bruls, Huizing, van Wijk, 2000, https://doi.org/10.1007/978-3-7091-6783-0_4
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

LETTER_WIDTH = 0.64
"""Of a letter, in font sizes; a careful average of system fonts."""
LARGEST_FONT, SMALLEST_FONT = 26.0, 11.0
MARGIN = 8.0
FEWEST_LETTERS = 4
"""Of a label that is cut off; fewer say nothing."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes space."""

    label: str
    size: int
    kind: str


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """A rectangle of the picture, in its units."""

    block: Block
    label: str
    """What there is room for; empty for nothing."""
    x: float
    y: float
    width: float
    height: float
    font: float
    """The font size of its label; 0 without a label."""
    has_detail: bool
    """Whether there is room for a second line, the size."""


class Box(msgspec.Struct, frozen=True):
    """The part of the picture that is still free."""

    x: float
    y: float
    width: float
    height: float

    @property
    def side(self) -> float:
        """The shorter side: rows are laid along it."""
        return min(self.width, self.height)


def gather(blocks: Sequence[Block], most: int) -> list[Block]:
    """Return the largest blocks, and one for all the rest."""
    ordered = sorted((one for one in blocks if one.size > 0), key=lambda one: -one.size)
    if len(ordered) <= most:
        return ordered
    rest = ordered[most - 1 :]
    more = Block(label=f"{len(rest)} more", size=sum(one.size for one in rest), kind="more")
    return [*ordered[: most - 1], more]


def lay_out(blocks: Sequence[Block], width: float, height: float) -> list[Tile]:
    """Fill a picture with tiles, the largest first; blocks without a size have none."""
    ordered = sorted((one for one in blocks if one.size > 0), key=lambda one: -one.size)
    if not ordered:
        return []
    scale = width * height / sum(one.size for one in ordered)
    tiles: list[Tile] = []
    free, row = Box(0, 0, width, height), list[Block]()
    for block in ordered:
        # A row ends where one more block would make its worst tile less square.
        if row and _worst([*row, block], free.side, scale) > _worst(row, free.side, scale):
            free = _place(row, free, scale, tiles)
            row = []
        row.append(block)
    _place(row, free, scale, tiles)
    return tiles


def _worst(row: Sequence[Block], side: float, scale: float) -> float:
    """Return how far the worst tile of a row is from a square; 1 is one."""
    areas = [block.size * scale for block in row]
    depth = sum(areas) / side if side else 0
    if not depth:
        return float("inf")
    lengths = [area / depth for area in areas]
    return max(max(length / depth, depth / length) for length in lengths)


def _place(row: Sequence[Block], free: Box, scale: float, tiles: list[Tile]) -> Box:
    """Lay a row along the shorter side; return what stays free."""
    total = sum(block.size for block in row) * scale
    depth = total / free.side if free.side else 0.0
    along = 0.0
    for block in row:
        length = block.size * scale / depth if depth else 0.0
        if free.width >= free.height:
            tiles.append(_tile(block, Box(free.x, free.y + along, depth, length)))
        else:
            tiles.append(_tile(block, Box(free.x + along, free.y, length, depth)))
        along += length
    if free.width >= free.height:
        # Rounding may leave a little less than zero.
        return Box(free.x + depth, free.y, max(free.width - depth, 0.0), free.height)
    return Box(free.x, free.y + depth, free.width, max(free.height - depth, 0.0))


def _tile(block: Block, box: Box) -> Tile:
    width, height = box.width - 2 * MARGIN, box.height - 2 * MARGIN
    letters = len(block.label)
    # A line takes 1.2 font sizes.
    font = min(width / (LETTER_WIDTH * max(letters, 1)), height / 1.2, LARGEST_FONT)
    if font < SMALLEST_FONT:
        letters = int(width / (LETTER_WIDTH * SMALLEST_FONT))
        has_room = letters >= FEWEST_LETTERS and height >= SMALLEST_FONT * 1.2
        font = SMALLEST_FONT if has_room else 0.0
    label = block.label if letters >= len(block.label) else f"{block.label[: letters - 1]}…"
    return Tile(
        block=block,
        label=label if font else "",
        x=round(box.x, 2),
        y=round(box.y, 2),
        width=round(box.width, 2),
        height=round(box.height, 2),
        font=round(font, 1),
        has_detail=bool(font) and height >= font * 2.4 and width >= 60,
    )
