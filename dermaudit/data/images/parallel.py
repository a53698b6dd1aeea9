"""One function over many images, in threads; images that cannot be used do not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .decode import BadImage

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 64  # images in flight with several threads: bounds memory for any number of images


def map_images(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result | BadImage]:
    """Yield `function(item)` for every item in order, or the BadImage that it raised."""

    def attempt(item: Item) -> Result | BadImage:
        try:
            return function(item)
        except BadImage as error:
            return error

    if threads <= 1:
        yield from map(attempt, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _AHEAD):
            yield from pool.map(attempt, items[start : start + _AHEAD])
