"""LightningModule of the student: an FMvT whose one step does what many guided steps of its teacher do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ctflow.config.generation import RolloutConfig
from ctflow.config.tasks import STUDENT_SOLVERS, FlowTask
from ctflow.data import BlockBatch
from ctflow.flow import (
    Churn,
    FlowDraw,
    Lesson,
    Velocity,
    flow_matching_loss,
    integrate,
    lesson,
    renoise,
    shift_times,
    solve,
    step_ends,
    time_grid,
)
from ctflow.generation import evaluations, guided_velocity
from ctflow.models import Conditions, FMvT
from ctflow.training.cost import forward_gflop
from ctflow.training.flow import (
    FlowModule,
    block_keys,
    draw_samples,
    fixed_draw,
    velocity_losses,
    with_known,
)
from ctflow.training.randomness import SampleRandom

ERROR_FLOOR = 1e-3
"""Added to the bend of the flow that losses are relative to; velocities have a power near 1."""
YARDSTICKS = ("teacher_euler", "teacher_midpoint")
"""Solutions of the guided teacher that validation compares with the student's; with churn the first alone."""


class Ratios(Metric):
    """Sums of squared errors over sums of squares, by name and over all processes.

    Args:
        names: What is summed.
    """

    full_state_update = False
    errors: Tensor
    squares: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        for state in ("errors", "squares"):
            self.add_state(state, torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, name: str, error: Tensor, square: Tensor) -> None:
        """Add the sums of two tensors, each of squares."""
        index = self.names.index(name)
        self.errors[index] += error.double().sum()
        self.squares[index] += square.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """The ratios."""
        return dict(zip(self.names, self.errors / self.squares, strict=True))


@dataclass(frozen=True)
class Exercise:
    """The evaluations of one step of the student, for every sample of a batch.

    Attributes:
        z: What each evaluation sees, ``[B, C, T, h, w]`` for each stage of the solver.
        t: When, ``[B]`` for each stage.
        target: The velocity that it is to say, ``[B, C, T, h, w]`` for each stage.
        bend: Mean squared difference of the teacher's first and mean velocity over the step ``[B]``.
    """

    z: list[Tensor]
    t: list[Tensor]
    target: list[Tensor]
    bend: Tensor


class StudentModule(FlowModule):
    """Trains the FMvT to land with one step where a frozen teacher lands with many.

    The steps are those of ``config.rollout``: Euler steps of one evaluation, or midpoint steps of two. A
    sample takes one step. It starts from noised data, or where the student's own steps lead from noise: so a
    step meets the errors of earlier steps. The evaluation of an Euler step, and the second one of a midpoint
    step, learn the teacher's mean velocity over the step. The first one of a midpoint step learns the
    teacher's guided velocity. The second one starts where the student's own half step leads. With churn an
    Euler step leads beyond the next one's beginning; noise brings the student's own state back.

    The loss is the squared error of the velocity over the flow's bend: the squared difference of the
    teacher's velocity at the step's beginning and its mean velocity. So steps of little and of much curvature
    count alike. For an Euler step it reads as the share of the teacher's own error that is left.

    Args:
        config: ``FlowTask`` with a ``student`` section, or its plain dictionary.
        seed: The run's seed.
        teacher: The frozen network; no part of the module's state.
    """

    def __init__(self, config: FlowTask | dict[str, Any], seed: int, teacher: FMvT) -> None:
        super().__init__(config, seed)
        grid, student = self.config.rollout, self.config.student
        self.steps, self.solver, self.stages = grid.steps, grid.solver, STUDENT_SOLVERS[grid.solver]
        self.times = time_grid(grid.steps, grid.time_shift)  # [steps + 1]
        self.ends = step_ends(self.times, grid.churn, grid.churn_below)  # [steps]
        self.guidance = RolloutConfig(
            grid.steps * student.substeps,
            student.solver,
            grid.time_shift,
            text_guidance=student.text_guidance,
            guidance_from=student.guidance_from,
        )
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: neither saved nor sharded
        self.solutions = ["student", *YARDSTICKS[: 1 if grid.churn else 2]]
        self.val_ratios = Ratios([*self._names, *self.solutions])

    @property
    def teacher(self) -> FMvT:
        """The frozen network."""
        return self._teacher[0]

    @property
    def _names(self) -> list[str]:
        """Of the losses of every evaluation, from noise to data."""
        return [f"loss_evaluation{index + 1}" for index in range(self.steps * self.stages)]

    def setup(self, stage: str) -> None:
        """Move the teacher, which Lightning does not know, to the device."""
        self.teacher.to(self.device)

    def compile_networks(self) -> None:
        """The teacher too is called at every step."""
        super().compile_networks()
        self.teacher.compile()

    def gflop_per_sample(self) -> float:
        """Three forwards for each evaluation, the student's own steps and the teacher's, on average."""
        own = self.config.student.on_policy * self.stages * (self.steps - 1) / 2 + self.stages - 1
        taught = evaluations(self.guidance) / self.steps
        return (3 * self.stages + own + taught) * forward_gflop(self.config.network)

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """Squared error of the student's velocities, relative to the flow's bend."""
        random = self.random(block_keys(batch))
        chance = draw_samples(self.config, batch, random)
        step = (random.uniform() * self.steps).long()  # [B]
        own = random.uniform() < self.config.student.on_policy  # [B]
        chance = replace(chance, t=self.times.to(self.device)[step])
        conditions = self.conditions(batch, chance)
        z = self.starts(batch, chance, conditions, step, own, random)
        exercise = self.exercise(z, conditions, step)
        losses = []  # [B] for each stage
        for z, t, target in zip(exercise.z, exercise.t, exercise.target, strict=True):
            prediction = self.network(z, t, conditions)
            errors = velocity_losses(prediction, target, batch, chance, self.config.flow.pair_weight)
            losses.append(errors / (exercise.bend + ERROR_FLOOR))
        self.batches += 1
        loss = torch.stack(losses).mean()
        self.log_terms({"loss": loss, **self._by_evaluation(losses, step)}, len(batch.case_id))
        return loss

    @torch.no_grad()
    def starts(
        self,
        batch: BlockBatch,
        chance: FlowDraw,
        conditions: Conditions,
        step: Tensor,
        own: Tensor,
        random: SampleRandom,
    ) -> Tensor:
        """Where the samples' steps begin, ``[B, C, T, h, w]``.

        Args:
            batch: The batch.
            chance: Its draw; ``t`` is the steps' beginning.
            conditions: What the network is told.
            step: ``[B]``, from 0 at the noise.
            own: ``[B]`` bool, samples that start where the averaged network's steps lead.
            random: Of the noise of churn.
        """
        noised = self.path.sample(batch.target, chance.noise, chance.t).z_t
        z = torch.where(own[:, None, None, None, None], chance.noise, noised)
        z = with_known(z, batch.target, chance.known)
        encoded = encoded_for(self.trained, conditions)
        for index in range(self.steps - 1):
            rows = (own & (step > index)).nonzero().squeeze(1)
            if len(rows):
                field = student_field(self.trained, encoded.select(rows))
                z[rows] = integrate(field, z[rows], self.span(index), self.solver)
            if self.churn:
                noise = random.normal(*z.shape[1:])
                z[rows] = self.brought_back(z[rows], index, noise[rows])
                z = with_known(z, batch.target, chance.known)
        return z

    @property
    def churn(self) -> float:
        """Share of the way to t = 0 that steps go further, as in ``config.rollout``."""
        return self.config.rollout.churn

    def span(self, index: int) -> Tensor:
        """Beginning and end of a step, as times ``[2]``."""
        return torch.stack([self.times[index], self.ends[index]])

    def brought_back(self, z: Tensor, index: int, noise: Tensor) -> Tensor:
        """The state at a step's end, with noise at the next one's beginning."""
        return renoise(z, self.ends[index].to(z), self.times[index + 1].to(z), noise)

    @torch.no_grad()
    def exercise(self, z: Tensor, conditions: Conditions, step: Tensor) -> Exercise:
        """What the evaluations of the samples' steps see, and what they are to say.

        Args:
            z: Where the steps begin, ``[B, C, T, h, w]``.
            conditions: What the networks are told.
            step: ``[B]``, from 0 at the noise.
        """
        told, own = encoded_for(self.teacher, conditions), encoded_for(self.trained, conditions)
        begin = self.times.to(z)[step]
        middle, halfway = torch.empty_like(begin), torch.empty_like(z)
        first, mean, bend = torch.empty_like(z), torch.empty_like(z), torch.empty_like(begin)
        for index in range(self.steps):
            rows = (step == index).nonzero().squeeze(1)
            if not len(rows):
                continue
            chosen = told.select(rows)
            taught = self.lesson(self.teacher_field(chosen), z[rows], index)
            first[rows], mean[rows] = taught.first, taught.velocity
            bend[rows] = flow_matching_loss(taught.first, taught.velocity, chosen.known)
            if self.stages == 2:
                half = self.halved(index)
                halfway[rows] = integrate(student_field(self.trained, own.select(rows)), z[rows], half)
                middle[rows] = half[1].to(z)
        if self.stages == 1:
            return Exercise([z], [begin], [mean], bend)
        return Exercise([z, halfway], [begin, middle], [first, mean], bend)

    def halved(self, index: int) -> Tensor:
        """Beginning and middle of a step, as times ``[2]``."""
        return torch.stack([self.times[index], self.times[index : index + 2].mean()])

    def lesson(self, teacher: Velocity, z: Tensor, index: int) -> Lesson:
        """The teacher's steps over one of the student's."""
        student, shift = self.config.student, self.config.rollout.time_shift
        begin, end = shift_times(self.span(index).double(), 1 / shift).tolist()
        times = shift_times(torch.linspace(begin, end, student.substeps + 1, dtype=torch.float64), shift)
        return lesson(teacher, z, times.float(), student.solver)

    def teacher_field(self, encoded: Conditions) -> Velocity:
        """The teacher's guided velocity; known slices stay."""
        batch = encoded.text.batch  # type: ignore[union-attr]
        guided = self.guidance.text_guidance != 1
        no_text = self.teacher.encode_text(None, batch=batch) if guided else None
        return _held(guided_velocity(self.teacher, encoded, no_text, self.guidance), encoded.known)

    def _by_evaluation(self, losses: list[Tensor], step: Tensor) -> dict[str, Tensor]:
        """Mean loss of every evaluation; NaN where the global batch has no sample of it."""
        sums = step.new_zeros(2, self.steps, self.stages, dtype=torch.float32)
        values = torch.stack(losses, dim=1).detach()  # [B, stages]
        sums.index_add_(1, step, torch.stack([values, torch.ones_like(values)]))
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(self._names, (sums[0] / sums[1]).flatten(), strict=True))

    def validation_step(self, batch: BlockBatch, batch_idx: int) -> None:
        """Errors of the averaged network from noise fixed per sample, by evaluation and of whole solutions.

        The evaluations' steps begin on the teacher's fine solution. The student's solution is held against
        its end, and so are the teacher's with as many Euler steps as the student has evaluations and, where
        no churn adds other noise to them, with half as many midpoint steps.
        """
        random = SampleRandom(self.seed, "validation", block_keys(batch), self.device)
        chance = fixed_draw(batch, random)
        conditions = self.conditions(batch, chance)
        teacher = self.teacher_field(encoded_for(self.teacher, conditions))
        student = student_field(self.trained, encoded_for(self.trained, conditions))
        z, names, grid, churn = chance.noise, iter(self._names), self.config.rollout, None
        if self.churn:
            noise = torch.stack([random.normal(*z.shape[1:]) for _ in range(self.steps - 1)])
            churn = Churn(grid.churn, noise, grid.churn_below)
        for index in range(self.steps):
            taught, times = self.lesson(teacher, z, index), self.span(index).to(z)
            bend = (taught.first - taught.velocity).square()
            first = student(z, times[0])
            if self.stages == 2:
                self.val_ratios.update(next(names), (first - taught.first).square(), bend)
                half = self.halved(index).to(z)
                first = student(z + (half[1] - half[0]) * first, half[1])
            self.val_ratios.update(next(names), (first - taught.velocity).square(), bend)
            z = z + (times[1] - times[0]) * taught.velocity
            if churn is not None and index + 1 < self.steps:
                z = self.brought_back(z, index, churn.noise[index])
        count = self.steps * self.stages
        solutions = {"student": (student, self.steps, self.solver)}
        solutions["teacher_euler"] = (teacher, count, "euler")
        if churn is None:
            solutions["teacher_midpoint"] = (teacher, max(count // 2, 1), "midpoint")
        for name, (field, steps, solver) in solutions.items():
            end = solve(field, chance.noise, steps, solver, shift=grid.time_shift, churn=churn)
            self.val_ratios.update(name, (end - z).square(), z.square())

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the evaluations, each of them, and the relative L2 errors of whole solutions."""
        ratios = self.val_ratios.compute()
        self.val_ratios.reset()
        losses = [ratios[name] for name in self._names]
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, rank_zero_only=True)
        for name, loss in zip(self._names, losses, strict=True):
            self.log(f"val/{name}", loss, rank_zero_only=True)
        for name in self.solutions:
            self.log(f"val/distance_{name}", ratios[name].sqrt(), rank_zero_only=True)


def encoded_for(network: FMvT, conditions: Conditions) -> Conditions:
    """The conditions with their text encoded once for all evaluations of a network."""
    text = network.encode_text(conditions.text, conditions.text_mask)  # type: ignore[arg-type]
    return replace(conditions, text=text, text_mask=None)


def student_field(network: FMvT, conditions: Conditions) -> Velocity:
    """The student's velocity, without guidance; known slices stay."""
    return _held(lambda z, t: network(z, t, conditions), conditions.known)


def _held(field: Velocity, known: Tensor | None) -> Velocity:
    if known is None:
        return field
    return lambda z, t: field(z, t).masked_fill(known[:, None, :, None, None], 0.0)
