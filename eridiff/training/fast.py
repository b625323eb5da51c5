"""The fast path on a GPU: nothing waits for the device, blocks are compiled, passes are replayed from CUDA graphs.

The same mathematics as the plain path, in the base's number format: it differs by rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from eridiff.acceleration.adapters import WorkingAdapters
from eridiff.acceleration.choose import Levers
from eridiff.acceleration.graph import Recorded, RecordedByShape
from eridiff.models.precision import DTYPES, compile_fixed_shapes
from eridiff.training.optim import learning_rate, set_rate
from eridiff.training.plain import halve_scale, keep_less, table_row, too_little_memory, unscaled
from eridiff.training.run import Run
from eridiff.training.step import Example, Reading, TrainStep

MAX_GRAPHS = 16  # shapes of batches; beyond, the longest unused is recorded again


class FastStep:
    """All micro-batches of one step and the optimizer's move, put into the device's queue."""

    def __init__(self, train_step: TrainStep, run: Run, optimizer: torch.optim.Optimizer, levers: Levers) -> None:
        self.train_step, self.run, self.optimizer, self.levers = train_step, run, optimizer, levers
        # Rows that may wait while the device works; in fp16 none, since the next scale is a function of all of them.
        self.late = 0 if run.params.precision == "fp16" else 1
        self.adapters = WorkingAdapters(run.denoiser, run.adapters, DTYPES[run.params.precision])
        self.loss, self.norm, self.found_inf, self.scale = (torch.zeros((), device=run.device) for _ in range(4))
        with run.kept.unwrapped():
            if levers.channels_last:
                run.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if levers.compile:
                compile_fixed_shapes(run.kept.blocks)
        self._passes = self._make_passes()
        self._capturable = bool(optimizer.param_groups[0].get("capturable"))
        if self._capturable:
            self._make_moments()
        self._move: Callable[[], None] | None = None

    def __call__(self, examples: list[Example], step: int) -> Reading:
        """Queue the step; returns what reads its row of the loss table, and waits for it."""
        params = self.run.params
        while not (self._accumulate(examples, step) and unscaled(self.run, self.loss)):
            halve_scale(self.run, step)
        rate = learning_rate(params.optimizer, step, params.steps)
        set_rate(self.optimizer, rate)
        self._update()
        return self._reading(rate)

    def _accumulate(self, examples: list[Example], step: int) -> bool:
        """Queue a step's forward and backward passes; again with less kept on the device where memory runs out."""
        run = self.run
        self.scale.fill_(run.loss_scale)
        try:
            for number, example in enumerate(examples):
                self._passes[min(number, 1)](example)
        except torch.OutOfMemoryError as error:
            if not run.can_keep_less:
                raise too_little_memory(run, step, error) from None
        else:
            return True
        self._passes = []  # and the memory of their graphs
        keep_less(run, step)
        self._passes = self._make_passes()
        return self._accumulate(examples, step)

    def _make_passes(self) -> list[Callable[[Example], None]]:
        """The passes of a step's first micro-batch, and of a later one, whose graphs share memory.

        What is copied to RAM, or from it, is in no graph.
        """
        level = self.run.kept.level
        passes = [self._pass(first=True), self._pass(first=False)]
        if not self.levers.graph or level.swapped or level.offload:
            return passes
        pool = torch.cuda.graph_pool_handle()
        return [RecordedByShape(work, self.run.device, MAX_GRAPHS, pool) for work in passes]

    def _pass(self, *, first: bool) -> Callable[[Example], None]:
        """Forward and backward pass of a step's first micro-batch, or of a later one."""

        def work(example: Example) -> None:
            here = example.to(self.run.device)
            with self.run.kept.step():
                loss = self.train_step(self.run, here.batch, here.draws)
                self.adapters.add_gradients(loss * self.scale, first=first)
            self.loss.copy_(loss.detach()) if first else self.loss.add_(loss.detach())

        return work

    def _update(self) -> None:
        """Clip, move, copy: from one graph where the optimizer can be in it."""
        if not (self.levers.graph and self._capturable):
            self._clip_and_move()
            return
        if self._move is None:
            self._move = Recorded(self._clip_and_move, warm_up=0)  # since each run of it moves the adapters
        self._move()

    def _clip_and_move(self) -> None:
        """A step whose norm is not finite moves nothing: fused optimizers see `found_inf`."""
        gradients: Any = [master.grad for master in self.adapters.masters]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.norm.copy_(norm)
        self.found_inf.copy_(norm.isfinite().logical_not())
        torch.nn.utils.clip_grads_with_norm_(self.adapters.masters, self.run.params.optimizer.max_grad_norm, self.norm)
        self.optimizer.step()
        self.adapters.refresh()

    def _make_moments(self) -> None:
        """Have the optimizer make its state, which a graph must not do: by a step that moves nothing."""
        setattr(self.optimizer, "found_inf", self.found_inf.fill_(1.0))  # noqa: B010
        self.optimizer.step()
        self.found_inf.zero_()

    def _reading(self, rate: float) -> Reading:
        """What waits for the numbers of this step, copied behind it."""
        numbers = torch.stack([self.loss, self.norm]).to("cpu", non_blocking=True)
        done = torch.cuda.Event() if self.run.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if done:
            done.record()
        row = table_row(self.run, math.nan, math.nan, rate)  # its scale is of now

        def read() -> dict[str, float]:
            if done:
                done.synchronize()
            row["loss"], row["grad_norm"] = numbers.tolist()
            return row

        return read
