"""Ctrl-C while a run trains: the step in progress is finished and saved before the run ends.

`course.py` decides after which step, for all processes together.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted_interrupts(message: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C during the block instead of raising; yield a function that returns whether there was one.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, and where Ctrl-C is ignored or handled
    otherwise, nothing changes and the function returns False.
    """
    noted = threading.Event()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield noted.is_set
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        message("interrupted: a checkpoint follows after this step; press Ctrl-C again to end at once")

    signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
