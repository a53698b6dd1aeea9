"""One function over many images, in threads; images that cannot be used do not stop the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .decode import BadImage

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 64  # images in flight with several threads: bounds memory for any number of images


def map_images(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
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
        waiting = iter(items)
        while block := list(itertools.islice(waiting, _AHEAD)):
            yield from pool.map(attempt, block)
