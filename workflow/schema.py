"""What the experiment file's sections are made of: a strict model, sizes and durations."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Strict(BaseModel):
    """A section: frozen, and no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse_bytes(value: Any) -> Any:
    """Bytes of "16MiB" or a plain number.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write it like 16MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_seconds(value: Any) -> Any:
    """Seconds of "01:00:00", "2-12:00:00", "90s", "10m", "4h" or a plain number.

    Colons are read as Slurm reads them: minutes, minutes:seconds, hours:minutes:seconds,
    days-hours:minutes:seconds; a plain number is seconds.

    Raises:
        ValueError: not a duration.
    """
    text = str(value).strip()
    unit = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text)
    if unit and unit[2] in _SECONDS:
        return float(unit[1]) * _SECONDS[unit[2]]
    slurm = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if slurm is None:
        raise ValueError(f"{value!r} is not a duration; write it like 01:00:00 or 90s")
    days, hours, minutes, seconds = (int(part or 0) for part in slurm.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=1000)]
"""Text of one line, which cannot add lines to a job script."""

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:/@+-]*$")]
"""A name on a cluster: partition, account, quality of service, constraint."""
