"""How a status looks: lines for a log, a picture that moves for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"

WORDS = 12
"""Letters of the first column, `groups 10-11`."""

ROWS = 16
"""Most rows of groups of members; more share rows."""

Found = Mapping[str, Any]


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Means of `width` stretches of a series as bars from its lowest to its highest."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = min(means), max(means)
    span = high - low
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((m - low) / span * top) if span else 0] for m in means)


def lines(found: Found, *, verbose: int = 0) -> list[str]:
    """A status in lines."""
    told = [f"{found['name']} in {found['folder']}"]
    told += [f"  {stage:10} {s['done']:>8} of {s['blocks']}" for stage, s in _stages(found)]
    told += [f"  {word:10} {text}" for word, text in _facts(found)]
    if verbose:
        told += [f"  {stage:10} {s:>8} s" for stage, s in found["wall_seconds"].items()]
    return told


def log_line(found: Found) -> str:
    """A status in one line, as the progress of `gfdt run` in a log."""
    rate, open_ = found["rate"], _open(found)
    if found["finished"]:
        return f"finished: {found['report']}"
    stage = open_[0] if open_ else "report"
    one = found["stages"].get(stage, {"done": 0, "blocks": 1})
    words = [stage, f"done={one['done']}", f"of={one['blocks']}"]
    if rate is not None and rate["stage"] == stage:
        words.append(f"eta_s={rate['seconds_left']}")
    states = Counter(job["state"] for job in found["jobs"] if "left" in job)
    words += [f"jobs_{state.lower()}={count}" for state, count in sorted(states.items())]
    if found["pool"] is not None:
        words.append(f"jobs_max={found['pool']['max_jobs']}")
    if not _alive(found):
        words.append("driver=none")
    return " ".join(words)


def picture(found: Found) -> Group:
    """A status for a terminal: bars by stage and by group of members, then the facts."""
    bars = _grid()
    for stage, one in _stages(found):
        bar = ProgressBar(total=max(1, one["blocks"]), completed=one["done"], width=40)
        bars.add_row(stage, bar, f"{one['done']} of {one['blocks']}")
    parts: list[Any] = [f"[bold]{found['name']}[/bold] in {found['folder']}", bars]
    if found["groups"] and "simulate" in _open(found):
        parts.append(_members(found))
    facts = _grid()
    for word, text in _facts(found):
        facts.add_row(word, _plain(text))
    return Group(*parts, facts)


def _grid() -> Table:
    """Rows whose words are as wide as those of all others."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=WORDS)
    grid.add_column()
    return grid


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # names in brackets are no styles


def _members(found: Found) -> Table:
    """Time-blocks done of every group of members; neighbours share a row where there are many."""
    done, rows = found["groups"], _grid()
    share = -(-len(done) // ROWS)
    for first in range(0, len(done), share):
        part = done[first : first + share]
        total = len(part) * found["group_blocks"]
        last = first + len(part) - 1
        name = f"group {first}" if last == first else f"groups {first}-{last}"
        rows.add_row(name, ProgressBar(total=total, completed=sum(part), width=40))
    return rows


def _stages(found: Found) -> list[tuple[str, Mapping[str, int]]]:
    return list(found["stages"].items())


def _open(found: Found) -> list[str]:
    return [stage for stage, one in _stages(found) if one["done"] < one["blocks"]]


def _alive(found: Found) -> bool:
    driver = found["driver"]
    if driver is not None and driver["alive"]:
        return True
    return any("left" in job and job["role"] != "worker" for job in found["jobs"])


def _facts(found: Found) -> list[tuple[str, str]]:
    facts = []
    if found["groups"] and "simulate" in _open(found):
        low, high, of = min(found["groups"]), max(found["groups"]), found["group_blocks"]
        facts.append(("members", f"{len(found['groups'])} groups: {low} to {high} of {of} blocks"))
    trainings = {"training": found["training"]}
    trainings |= {f"training {name}": one for name, one in found["rivals"].items()}
    facts += [(word, _training(one)) for word, one in trainings.items() if one and one["losses"]]
    if found["rate"] is not None and _alive(found):
        rate = found["rate"]
        left = duration(rate["seconds_left"])
        facts.append(("pace", f"{rate['stage']}: {rate['per_second']:g} a second, {left} left"))
    if found["core_hours"]:
        spent = sum(found["core_hours"].values())
        by = ", ".join(f"{stage} {h:.2g}" for stage, h in found["core_hours"].items() if h)
        facts.append(("cost", f"{spent:.3g} core-hours ({by})"))
    if found["stein"]:
        facts.append(("stein", ", ".join(f"{name} {v:.2g}" for name, v in found["stein"].items())))
    if found.get("quarantined"):
        members = ", ".join(map(str, found["quarantined"]))
        facts.append(("left out", f"member {members}, which became non-finite"))
    facts += _who(found)
    facts.append(("report", found["report"] or "not yet"))
    if not found["finished"] and not _alive(found):
        drivers = {job["role"].split(" ")[0] for job in found["jobs"]} - {"worker", "train"}
        again = "gfdt submit" if drivers else "gfdt run"
        facts.append(("next", f"nobody works on it; continue with: {again} {found['name']}"))
    return facts


def _training(one: Mapping[str, Any]) -> str:
    test = one["test_loss"]
    held_out = f"(held out {test:.4g}) " if test is not None else ""
    losses = one["losses"]
    return f"step {one['step']}, loss {losses[-1]:.4g} {held_out}{sparkline(losses)}"


def _who(found: Found) -> list[tuple[str, str]]:
    facts = []
    driver = found["driver"]
    if driver is not None:
        state = "works" if driver["alive"] else "died"
        where = f"pid {driver['pid']} on {driver['host']} since {driver['since']}"
        facts.append(("driver", f"{state}: {where}"))
    if found.get("dashboard"):
        pages = found["dashboard"]
        facts.append(("dashboard", f"{pages['url']}; from elsewhere first: {pages['tunnel']}"))
    workers: Counter[str] = Counter()
    for job in found["jobs"]:
        if job["role"] == "worker":
            workers[job["state"]] += 1
        else:
            facts.append((f"job {job['id']}", _job(job)))
    if found["pool"] is not None:
        facts.append(("workers", _pool(found["pool"])))
    elif workers:
        facts.append(("workers", ", ".join(f"{n} {state}" for state, n in workers.items())))
    if found["slurm"]:
        facts.append(("slurm", f"not known: {found['slurm']}"))
    return facts


def _pool(pool: Mapping[str, Any]) -> str:
    """Worker jobs as their driver counts them."""
    low, high = pool["min_jobs"], pool["max_jobs"]
    words = [f"{pool['running']} at work", f"{pool['queued']} on their way"]
    if pool["leaving"]:
        words.append(f"{pool['leaving']} ending after their present block")
    told = f"{', '.join(words)}; {low} to {high} allowed" if high else "paused by gfdt scale"
    return f"{told}; {pool['note']}" if pool["note"] else told


def _job(job: Mapping[str, Any]) -> str:
    role = job["role"].removeprefix("stage:")
    if "left" in job:
        where = job["reason"].strip("()")
        if job["state"] == "RUNNING":
            return f"{role} RUNNING on {where}, {job['left']} left"
        return f"{role} {job['state']}: {where}"
    if job["log"] is None:
        return f"{role} {job['state']}, never started"
    said = f": {job['said']}" if job["said"] and job["state"] != "COMPLETED" else ""
    return f"{role} {job['state']}{said or '; log ' + job['log']}"


def duration(seconds: float) -> str:
    """Seconds in words, two units at most."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"
