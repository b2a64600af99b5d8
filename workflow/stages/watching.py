"""The eyes of training: its log, its validation, the choice of the best parameters, the stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from hpc.comm import Comm
from hpc.files import atomic_write_bytes
from workflow.runs import Run
from workflow.scores.neural import WhitenedScore
from workflow.scores.training import Batch, Step, Trainer
from workflow.scores.validation import Best, Validation, validation_batch, validation_sums
from workflow.stages.data import members_left, read_places, read_snapshots

HELD_OUT = 512
"""Pairs of validation; their snapshots are spread evenly over what was held out, and come more
than once where there are fewer."""

LOG_EVERY = 10
"""Steps between lines of score/log.jsonl."""


class Watch:
    """Watches a training; all ranks call all methods, rank 0 writes.

    Validation is shared among the ranks, and its sums reach all of them alike, so they choose and
    stop alike.

    Args:
        run: the run.
        comm: the ranks.
        trainer: the training.

    Attributes:
        best: parameters of the lowest held-out loss so far.
    """

    def __init__(self, run: Run, comm: Comm, trainer: Trainer) -> None:
        self._run, self._comm, self._trainer = run, comm, trainer
        self._log = run.folder / "score" / "log.jsonl"
        self._patience = run.experiment.score.train.patience
        self.best = Best()
        self._test = _test_batch(run, comm, trainer)
        self._micro = trainer.micro_batch
        self._since = (trainer.step, time.perf_counter())
        self._started = self._since[1]

    @property
    def enough(self) -> bool:
        """Whether the held-out loss has not fallen for so long that training should stop."""
        return self._patience is not None and self.best.waited >= self._patience

    def begin(self) -> None:
        """Judge what a new training starts from: unless it does better, that stays the best."""
        if self._trainer.step == 0:
            found = self._validate()
            line = {"step": 0, "skipped": 0, **_told(found)}
            if self._comm.rank == 0:
                self._write(line)

    def note(self, step: Step, *, validate: bool) -> None:
        """Log a step; with `validate`, judge the averaged parameters on what was held out."""
        trainer = self._trainer
        line: dict[str, Any] = {"step": trainer.step, "loss": _rounded(step.loss)}
        line |= {"norm": _rounded(step.norm), "skipped": trainer.skipped}
        if validate:
            line |= _told(self._validate())
        if trainer.micro_batch < self._micro:
            print(
                f"out of memory: {trainer.micro_batch} network calls at a time instead of "
                f"{self._micro} on rank {self._comm.rank} from now on",
                flush=True,
            )
            self._micro = trainer.micro_batch
        if self._comm.rank == 0 and (validate or trainer.step % LOG_EVERY == 0):
            self._write(line)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return self.best.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, at the trainer's step."""
        self.best = Best.from_state(state)
        self._since = (self._trainer.step, time.perf_counter())

    def cut(self) -> None:
        """Drop lines of the log beyond the trainer's step: those steps will be made again."""
        if self._comm.rank == 0 and self._log.is_file():
            lines = [text for text in self._log.read_text().splitlines() if text.endswith("}")]
            until = self._trainer.step or -1  # the start is judged again
            kept = [text for text in lines if json.loads(text)["step"] <= until]
            atomic_write_bytes(self._log, "".join(f"{text}\n" for text in kept).encode())

    def judge(self, model: WhitenedScore) -> Validation:
        """A model on what was held out; all ranks call it, and hear the same."""
        sums = validation_sums(model, self._test)
        self._comm.allreduce_sum(sums)
        return Validation.of(sums)

    def _validate(self) -> Validation:
        found = self.judge(self._trainer.averaged())
        self.best.offer(self._trainer.step, found.loss, self._trainer.average)
        return found

    def _write(self, line: dict[str, Any]) -> None:
        (step, since), now = self._since, time.perf_counter()
        self._since = (self._trainer.step, now)
        calls = (self._trainer.step - step) * self._run.experiment.score.train.global_batch
        line["samples_per_s"] = round(calls / max(now - since, 1e-9), 1)
        print(json.dumps({**line, "seconds": round(now - self._started, 1)}), flush=True)
        with self._log.open("a") as file:
            file.write(f"{json.dumps(line)}\n")


def _told(found: Validation) -> dict[str, Any]:
    return {"test_loss": _rounded(found.loss), "stein": [*map(_rounded, found.stein)]}


def _rounded(value: float) -> float | None:
    # JSON knows no NaN.
    return round(value, 6) if math.isfinite(value) else None


def _test_batch(run: Run, comm: Comm, trainer: Trainer) -> Batch:
    """This rank's share of the snapshots of validation, with noise that is always the same."""
    members, times = members_left(run, run.held_out), run.held_out.times
    pairs = max(HELD_OUT, comm.size)  # a rank without any would have to be told apart
    chosen = np.linspace(0, len(members) * len(times) - 1, pairs).round().astype(int).tolist()
    mine = slice(comm.rank * pairs // comm.size, (comm.rank + 1) * pairs // comm.size)
    places = [(members[i // len(times)], times[i % len(times)]) for i in chosen[mine]]
    x = read_places(run, places, partial(read_snapshots, run))
    return validation_batch(trainer.model, x, seed=run.experiment.seed, pairs=pairs, mine=mine)
