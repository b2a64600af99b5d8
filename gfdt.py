"""The `gfdt` command: hears Ctrl-C while the rest of it is imported, which takes seconds."""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point of the console script."""
    # In silence for the time of one small import, then with a line.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hpc.stopping import stop_at_once

    stop_at_once()
    from workflow.cli import main as command

    command()


if __name__ == "__main__":
    main()
