"""A run: its folder, its experiment, its system, and how its work is cut into blocks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpc.files import atomic_write_bytes
from hpc.ledger import Ledger
from workflow import __version__
from workflow.config import Experiment
from workflow.diffusion import build_process
from workflow.dynamics import build_system
from workflow.interfaces import SPACE, Part, Saved, System, UserError
from workflow.keys import key_of
from workflow.quarantine import quarantined
from workflow.recorded import saved_of

Notify = Callable[[str, int, int], None]
"""Called with (stage, blocks done, blocks in all)."""

ENOUGH_MEMBERS = 8
"""Members from which on they alone make the error bars."""

USUAL_CHUNK = 16 * 2**20
"""Bytes of a chunk."""

INFORMATION = "information"
"""Block of the training, and file in `score/`, of the Fisher information a pilot has measured."""

RIVALS = "rivals"
"""Folder of a run with the runs of its rivals."""

ROUNDS_BLOCKS = 8
"""At most that many blocks of paired runs: the store stays small however many pairs there are."""


@dataclass(frozen=True)
class Run:
    """One run folder with the resolved experiment in it."""

    folder: Path
    experiment: Experiment

    @cached_property
    def system(self) -> System:
        """The system, built from its parameters.

        Raises:
            UserError: the run is of recorded data.
        """
        if self.experiment.system is None:
            raise UserError(f"{self.experiment.name} is a run of recorded data: nothing to step")
        return build_system(self.experiment.system)

    @cached_property
    def saved(self) -> Saved:
        """What is saved at every time: of the system, or found in the user's data.

        Raises:
            UserError: `score.given` names what is not there.
        """
        return self._everything.conditioned(self.experiment.score.given)

    @cached_property
    def _everything(self) -> Saved:
        if self.experiment.data is None:
            return Saved(tuple(self.system.fields), self.system.shape, self.system.homogeneous)
        return saved_of(self.experiment.data)

    @cached_property
    def rows(self) -> list[int]:
        """Where `saved.all_fields` stand among the fields as the system, or the data, have them."""
        names = [field.name for field in self._everything.fields]
        return [names.index(field.name) for field in self.saved.all_fields]

    @property
    def home(self) -> Path:
        """Folder that holds the ensemble: its own, or that of the run whose rival it is."""
        above = self.folder.parent.parent
        nested = self.folder.parent.name == RIVALS and (above / "experiment.yaml").is_file()
        return above if nested else self.folder

    @property
    def ensemble(self) -> Path:
        """Store of the unperturbed ensemble."""
        return self.home / "ensemble.zarr"

    @property
    def scores(self) -> Path:
        """Store of scores on the ensemble."""
        return self.folder / "scores.zarr"

    @property
    def perturbed(self) -> Path:
        """Store of responses per member from paired perturbed runs."""
        return self.folder / "perturbed.zarr"

    @property
    def correlations(self) -> Path:
        """Store of raw GFDT responses per member."""
        return self.folder / "correlations.zarr"

    @property
    def samples(self) -> Path:
        """Store of samples of the learned density."""
        return self.folder / "samples.zarr"

    @property
    def comparison(self) -> Path:
        """Store of samples by several samplers."""
        return self.folder / "comparison.zarr"

    @property
    def response(self) -> Path:
        """Store of responses with error bars."""
        return self.folder / "response.zarr"

    @property
    def checks(self) -> Path:
        """What scores and data were tested by."""
        return self.folder / "checks.json"

    def ledger(self, stage: str) -> Ledger:
        """Receipts of a stage's blocks."""
        folder = self.home if stage == "simulate" else self.folder
        return Ledger(folder / "ledger" / stage, folder)

    @property
    def quarantined(self) -> dict[int, int]:
        """Members left out because they became non-finite, and the saved time of the first loss."""
        return quarantined(self.ledger("simulate"))

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the space axes."""
        return SPACE[len(self.saved.shape)]

    @property
    def steps_per_save(self) -> int:
        """Time steps between saved snapshots."""
        return round(self.experiment.ensemble.save_every / self.system.dt)

    @property
    def times(self) -> int:
        """Saved snapshots of a member."""
        return round(self.experiment.ensemble.length / self.experiment.ensemble.save_every)

    @property
    def spinup_steps(self) -> int:
        """Time steps before the first saved interval."""
        return round(self.experiment.ensemble.spinup / self.system.dt)

    @cached_property
    def groups(self) -> list[range]:
        """Members stepped together, in fixed groups."""
        members, size = self.experiment.ensemble.members, self.experiment.ensemble.group
        return [range(i, min(i + size, members)) for i in range(0, members, size)]

    @property
    def chunk(self) -> int:
        """Bytes of a chunk; one that no pilot has chosen has the usual size."""
        return self.experiment.ensemble.chunk or USUAL_CHUNK

    @property
    def chunk_times(self) -> int:
        """Saved times in a chunk, which is one segment of simulation."""
        return self.chunk_times_of(self.chunk)

    def chunk_times_of(self, chunk: int) -> int:
        """Saved times in a chunk of so many bytes, at least one."""
        config = self.experiment.ensemble
        snapshot = self.saved.numbers // len(self.saved.fields) * np.dtype(config.dtype).itemsize
        return max(1, chunk // (snapshot * min(config.group, config.members)))

    @property
    def segments(self) -> int:
        """Segments of saved simulation per group."""
        return math.ceil(self.times / self.chunk_times)

    @property
    def spinup_segments(self) -> int:
        """Segments of spin-up per group; at least one, which makes the initial state."""
        return max(1, math.ceil(self.spinup_steps / (self.chunk_times * self.steps_per_save)))

    def segment_times(self, segment: int) -> range:
        """Indices of the saved times of a segment."""
        first = segment * self.chunk_times
        return range(first, min(first + self.chunk_times, self.times))

    @property
    def split_by(self) -> str:
        """What is held out: members, or the end of the run where there is only one."""
        by = self.experiment.score.split.by
        if by == "auto":
            return "member" if self.experiment.ensemble.members > 1 else "time"
        return by

    @property
    def training(self) -> Part:
        """Members and times that scores are learned from."""
        return self._parts[0]

    @property
    def held_out(self) -> Part:
        """Members and times that scores are tested on: the last ones."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[Part, Part]:
        split, members = self.experiment.score.split, self.experiment.ensemble.members
        times = self.training_times
        if self.split_by == "time":
            held = min(times - 1, max(1, round(split.test * times)))
            everyone = range(members)
            return Part(everyone, range(times - held)), Part(everyone, range(times - held, times))
        held = min(members - 1, max(1, round(split.test * members)))
        first = members - held
        return Part(range(first), range(times)), Part(range(first, members), range(times))

    @property
    def training_times(self) -> int:
        """Saved times that training may see."""
        until = self.experiment.score.split.until
        every = self.experiment.ensemble.save_every
        return self.times if until is None else min(self.times, round(until / every))

    @property
    def learned(self) -> list[str]:
        """Estimators that need a score, in the order of the stores."""
        return [e for e in self.experiment.response.estimators if e != "direct"]

    @property
    def trained(self) -> list[str]:
        """Estimators that have to be trained."""
        wanted = {self.experiment.score.estimator, *self.experiment.response.estimators}
        return [name for name in ("neural", "kgmm") if name in wanted]

    @property
    def trained_steps(self) -> int:
        """Steps of the newest checkpoint of the learned score; 0 without one."""
        done = self.ledger("train").done()
        return max((int(b.removeprefix("step-")) for b in done if b.startswith("step-")), default=0)

    @property
    def pilot_steps(self) -> int:
        """Steps of the pilot before the training; 0 where none is asked for, or none has a use.

        Noise has units to be found where it is narrow, and the fields homogeneous.
        """
        score = self.experiment.score
        useful = self.saved.maps and build_process(score.process).narrow
        return math.ceil(score.train.pilot * score.train.steps) if useful else 0

    @property
    def in_pilot(self) -> bool:
        """Whether a pilot is asked for and has not found its answer."""
        return self.pilot_steps > 0 and INFORMATION not in self.ledger("train").done()

    @property
    def is_trained(self) -> bool:
        """Whether the learned score is finished; it may have stopped early."""
        done = self.trained_block("neural") in self.ledger("train").done()
        return done and not self.in_pilot

    @property
    def unfitted(self) -> set[str]:
        """Blocks of the training that are found without ranks, and are not there yet."""
        fitted = {"whitening", "statistics", *(["kgmm"] if "kgmm" in self.trained else [])}
        return fitted - self.ledger("train").done()

    def trained_block(self, name: str) -> str:
        """Receipt, and file in `score/`, of an estimator's final state."""
        return name if name in ("neural", "kgmm") else "whitening"

    @property
    def lags(self) -> int:
        """Longest lag in saved samples."""
        response = self.experiment.response
        return round(response.max_lag / self.experiment.ensemble.save_every)

    @property
    def direct_lags(self) -> int:
        """Longest lag of the paired runs in saved samples."""
        limit = self.experiment.direct.max_lag
        every = self.experiment.ensemble.save_every
        return self.lags if limit is None else min(self.lags, round(limit / every))

    @property
    def errors_by(self) -> str:
        """What error bars resample: members where there are enough, else blocks of time."""
        by = self.experiment.response.error.by
        if by == "auto":
            return "member" if self.experiment.ensemble.members >= ENOUGH_MEMBERS else "time"
        return by

    @property
    def sum_times(self) -> int:
        """Saved times of a block of sums, which is the unit of error bars in time.

        It does not depend on the length of the run, so that a longer run only adds blocks.
        """
        chunk, every = self.chunk_times, self.experiment.ensemble.save_every
        asked = self.experiment.response.error.block
        lags = 16 if self.errors_by == "member" else 4
        target = max(lags * self.lags, 64) if asked is None else max(1, round(asked / every))
        if target >= chunk and asked is None:
            return math.ceil(target / chunk) * chunk
        return target

    @cached_property
    def sum_blocks(self) -> list[range]:
        """Saved times of every block of sums."""
        size = self.sum_times
        return [range(t, min(t + size, self.times)) for t in range(0, self.times, size)]

    @property
    def sums_per_task(self) -> int:
        """Blocks of sums that one task makes: about as much data as a chunk holds."""
        return max(1, self.chunk_times // self.sum_times)

    @property
    def round_blocks(self) -> list[range]:
        """Rounds of paired runs (one pair a member) of each block; pairs are rounded up."""
        rounds = math.ceil(self.experiment.direct.pairs / self.experiment.ensemble.members)
        blocks = min(rounds, ROUNDS_BLOCKS)
        edges = [rounds * b // blocks for b in range(blocks + 1)]
        return [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def key(self, stage: str) -> str:
        """Hash of everything a stage's product depends on."""
        return key_of(self, stage)

    def renew(self, stage: str, *products: Path) -> None:
        """Remove a stage's products and receipts if they belong to another state of the run."""
        if self.is_current(stage):
            return
        mark = self._mark(stage)
        for path in (mark, self.folder / "ledger" / stage, *products):
            self.discard(path)
        atomic_write_bytes(mark, self.key(stage).encode())

    def is_current(self, stage: str) -> bool:
        """Whether a stage's products, as far as there are any, belong to the run as it is."""
        mark = self._mark(stage)
        return mark.is_file() and mark.read_text() == self.key(stage)

    def _mark(self, stage: str) -> Path:
        return self.folder / "ledger" / f"{stage}.key"

    def discard(self, path: Path) -> None:
        """Remove a product, first from the record of what must be there."""
        self.ledger("frames").drop(path.name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _science(self) -> dict[str, Any]:
        """The experiment without the keys that cannot change a number."""
        free: Any = {name: True for name in ("cluster", "faults", "report", "sample")}
        free["response"] = {"checks"}
        return self.experiment.model_dump(mode="json", exclude=free)

    def attributes(self, title: str) -> dict[str, Any]:
        """CF attributes of a store; no times of day, so that equal runs have equal bytes."""
        return {
            "Conventions": "CF-1.11",
            "title": title,
            "source": f"gfdt-workflow {__version__}",
            "history": f"gfdt-workflow {__version__}: run {self.experiment.name}",
            "references": "arXiv:2402.01029",
            "experiment": json.dumps(self._science(), sort_keys=True),
            "seed_scheme": "Philox4x32 key=seed, counter=(number // 4, step, stream, member)",
        }
