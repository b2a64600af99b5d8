"""Log files that never disturb the work they tell of.

Apart from `backends`, since Dask's workers name the class in their logging settings and import it
while they import Dask.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence


class LogFile(logging.FileHandler):
    """A log file that drops what it cannot write, as on a full disk, without a word.

    Args:
        filename: the file, made at the first message and appended to.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, if that can be done."""
        # Opening raises past `handleError`.
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing: the work itself meets a full disk and tells it."""

    def flush(self) -> None:
        """Hand what is buffered to the disk, if it takes it."""
        with contextlib.suppress(OSError, ValueError):
            super().flush()

    def close(self) -> None:
        """Close the file; what the disk refuses is lost."""
        with contextlib.suppress(OSError):
            super().close()


OWN = "gfdt: "
"""How a line begins in which a command or a rank of ours tells why it leaves."""


def last_words(lines: Sequence[str]) -> str | None:
    """The last line in which a command of ours told its error, else the last that says anything.

    What our own command says tells more than the farewell of whoever started it.
    """
    said = [line for line in lines if line.strip()]
    own = [line for line in said if line.startswith(OWN)]
    last = own or said
    return last[-1].removeprefix(OWN) if last else None
