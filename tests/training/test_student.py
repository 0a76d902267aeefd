"""A student of an FMvT: what it is taught, that it learns, and what its run leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from test_train_command import two_processes

from ctflow.checkpoint import load_fmvt, load_system, mix, save_avae, save_fmvt, save_system
from ctflow.config.flow_network import FlowNetworkConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.models import FlowConfig, FMvTConfig
from ctflow.config.tasks import FlowTask, StudentConfig
from ctflow.config.training import TrainConfig
from ctflow.data import BlockBatch
from ctflow.errors import ConfigError, CTFlowError
from ctflow.flow import Churn, KnownRegion, integrate, solve, time_grid
from ctflow.models import AVAE, Conditions, FMvT
from ctflow.pack import main as pack
from ctflow.train import main
from ctflow.training.flow import draw_samples
from ctflow.training.student import StudentModule, encoded_for, student_field

if TYPE_CHECKING:
    from tests.training.conftest import TinyData

NETWORK = FMvTConfig(
    input_size=[16, 4, 4],
    latent_channels=4,
    patch_size=[4, 4, 4],
    hidden_size=16,
    depth=1,
    num_heads=2,
    text_dim=8,
)
SHIFT = 3.0


def teacher_network() -> FMvT:
    torch.manual_seed(0)
    network = FMvT(NETWORK)
    with torch.no_grad():  # the output of a fresh network is zero: this one must answer to its inputs
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def student_module(
    rollout: RolloutConfig | None = None, flow: FlowConfig | None = None, **student
) -> StudentModule:
    task = FlowTask(
        network=FlowNetworkConfig.of(NETWORK),
        flow=flow or FlowConfig(noise_offset=0.0),
        rollout=rollout or RolloutConfig(steps=3, time_shift=SHIFT),
        student=StudentConfig(**{"teacher": "teacher", "solver": "euler", **student}),
    )
    module = StudentModule(task, 0, teacher_network())
    for network in (module.network, module.trained):
        network.load_state_dict(module.teacher.state_dict())
    return module


@pytest.fixture
def batch() -> BlockBatch:
    generator = torch.Generator().manual_seed(3)
    rows = 6

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return BlockBatch(
        previous=normal(rows, 4, 16, 4, 4),
        target=normal(rows, 4, 16, 4, 4),
        text=normal(rows, 5, 8),
        text_mask=torch.ones(rows, 5, dtype=torch.bool),
        pooled=normal(rows, 8),
        position=16 * torch.arange(rows),
        length=torch.full((rows,), 96),
        spacing=torch.full((rows, 3), 3.0),
        case_id=[f"case_{row}" for row in range(rows)],
    )


def drawn(module: StudentModule, batch: BlockBatch):
    chance = draw_samples(module.config, batch, module.random(batch.case_id))
    step = torch.arange(len(batch.case_id)) % module.steps
    return replace(chance, t=module.times[step]), step


NONE = torch.zeros(6, dtype=torch.bool)


def test_one_substep_without_guidance_teaches_the_teachers_velocity(batch: BlockBatch) -> None:
    module = student_module(substeps=1, flow=FlowConfig(noise_offset=0.0, known_share=0.5))
    chance, step = drawn(module, batch)
    conditions = module.conditions(batch, chance)
    assert chance.known is not None and chance.known.any() and not chance.known.all()
    z = module.starts(batch, chance, conditions, step, NONE, module.random(batch.case_id))
    exercise = module.exercise(z, conditions, step)
    with torch.no_grad():
        own = module.teacher(z, chance.t, conditions)
    own = own.masked_fill(chance.known[:, None, :, None, None], 0.0)
    torch.testing.assert_close(exercise.target[0], own, rtol=1e-4, atol=1e-5)
    assert torch.equal(exercise.z[0], z) and torch.equal(exercise.t[0], chance.t)
    assert exercise.bend.max() < 1e-8


def guided(module: StudentModule, point: torch.Tensor, t: torch.Tensor, one: Conditions) -> torch.Tensor:
    velocity = module.teacher(point, t, one)
    if t < 0.9:
        return velocity
    return velocity + 3 * (velocity - module.teacher(point, t, replace(one, text=None, text_mask=None)))


@torch.no_grad()
def test_guidance_and_substeps_are_in_the_target(batch: BlockBatch) -> None:
    module = student_module(substeps=2, text_guidance=4.0, guidance_from=0.9)
    chance, step = drawn(module, batch)
    conditions = module.conditions(batch, chance)
    z = module.starts(batch, chance, conditions, step, NONE, module.random(batch.case_id))
    exercise = module.exercise(z, conditions, step)
    times = time_grid(6, SHIFT)
    for row, index in enumerate(step.tolist()):
        one, start = conditions.select(torch.tensor([row])), z[row : row + 1]
        point = start
        for place in (2 * index, 2 * index + 1):
            t, after = times[place], times[place + 1]
            point = point + (after - t) * guided(module, point, t, one)
        mean = (start - point) / (module.times[index] - module.times[index + 1])
        torch.testing.assert_close(exercise.target[0][row], mean[0], rtol=1e-4, atol=1e-5)
        bend = (mean - guided(module, start, module.times[index], one)).square().mean()
        torch.testing.assert_close(exercise.bend[row], bend, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_a_midpoint_students_second_evaluation_starts_from_its_own_half_step(batch: BlockBatch) -> None:
    rollout = RolloutConfig(steps=2, solver="midpoint", time_shift=SHIFT)
    module = student_module(rollout, substeps=3, text_guidance=4.0, guidance_from=0.9)
    for parameter in module.trained.parameters():
        parameter.mul_(0.9)
    chance, step = drawn(module, batch)
    conditions = module.conditions(batch, chance)
    z = module.starts(batch, chance, conditions, step, NONE, module.random(batch.case_id))
    exercise = module.exercise(z, conditions, step)
    whole = student_module(replace(rollout, solver="euler"), substeps=3, text_guidance=4.0, guidance_from=0.9)
    assert torch.equal(exercise.target[1], whole.exercise(z, conditions, step).target[0])
    assert torch.equal(exercise.z[0], z) and torch.equal(exercise.t[0], chance.t)
    for row, index in enumerate(step.tolist()):
        one, point = conditions.select(torch.tensor([row])), z[row : row + 1]
        times = module.times[index : index + 2]
        teacher = guided(module, point, times[0], one)[0]
        torch.testing.assert_close(exercise.target[0][row], teacher, rtol=1e-4, atol=1e-5)
        # So the two evaluations that are taught are those of the solver's own midpoint step.
        field = student_field(module.trained, encoded_for(module.trained, one))
        said = field(exercise.z[1][row : row + 1], exercise.t[1][row])
        end = point + (times[1] - times[0]) * said
        torch.testing.assert_close(end, integrate(field, point, times, "midpoint"), rtol=1e-4, atol=1e-5)


def test_a_share_starts_where_the_students_own_steps_lead(batch: BlockBatch) -> None:
    module = student_module(flow=FlowConfig(noise_offset=0.0, known_share=1.0))
    chance, step = drawn(module, batch)
    conditions = module.conditions(batch, chance)
    own = torch.tensor([True, True, True, False, False, False])
    with torch.no_grad():  # the averaged network walks, not the one in training
        for parameter in module.network.parameters():
            parameter.zero_()
    z = module.starts(batch, chance, conditions, step, own, module.random(batch.case_id))
    known = chance.known
    assert known is not None
    known = known[:, None, :, None, None]
    noised = torch.where(known, batch.target, module.path.sample(batch.target, chance.noise, chance.t).z_t)
    assert torch.equal(z[3:], noised[3:]) and torch.equal(z[0], noised[0])  # at t = 1 both are noise
    field = student_field(module.trained, encoded_for(module.trained, conditions))
    walked = torch.where(known, batch.target, chance.noise)
    with torch.no_grad():
        for index in (0, 1):
            t, after = module.times[index], module.times[index + 1]
            walked = walked + (after - t) * field(walked, t)
            torch.testing.assert_close(z[index + 1], walked[index + 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(z[1], noised[1], atol=1e-2)


@torch.no_grad()
def test_with_churn_the_students_own_starts_lie_on_its_sampled_solution(batch: BlockBatch) -> None:
    grid = RolloutConfig(steps=3, time_shift=SHIFT, churn=0.5, churn_below=0.95)
    module = student_module(grid, flow=FlowConfig(noise_offset=0.0, known_share=1.0))
    assert module.ends.tolist() == pytest.approx([3 / 7, 0.3, 0.0])  # for the times 6/7 and 0.6
    chance, _ = drawn(module, batch)
    last = torch.full((6,), 2)
    conditions = module.conditions(batch, replace(chance, t=module.times[last]))
    assert chance.known is not None and chance.known.any() and not chance.known.all()
    z = module.starts(batch, chance, conditions, last, ~NONE, module.random(batch.case_id))
    encoded = encoded_for(module.trained, conditions)
    end = integrate(student_field(module.trained, encoded), z, module.times[2:])

    again = module.random(batch.case_id)
    noise = torch.stack([again.normal(*z.shape[1:]) for _ in range(2)])
    held = KnownRegion(chance.known[:, None, :, None, None], batch.target, clean=True)
    solved = solve(
        lambda z, t: module.trained(z, t, encoded), chance.noise, 3, "euler", held, SHIFT,
        Churn(0.5, noise, 0.95),
    )  # fmt: skip
    torch.testing.assert_close(end, solved, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_churn_a_step_learns_the_way_to_its_end(batch: BlockBatch) -> None:
    grid = RolloutConfig(steps=3, time_shift=SHIFT, churn=0.5, churn_below=0.8)
    module = student_module(grid, substeps=4, solver="midpoint")
    chance, _ = drawn(module, batch)
    step = torch.ones(6, dtype=torch.long)
    conditions = module.conditions(batch, chance)
    z = module.path.sample(batch.target, chance.noise, module.times[1]).z_t
    exercise = module.exercise(z, conditions, step)
    landed = z + (module.ends[1] - module.times[1]) * exercise.target[0]
    field = module.teacher_field(encoded_for(module.teacher, conditions))
    even = torch.linspace(2 / 3, 1 / 8, 5)  # shifted by 3: from 6/7 to 0.3
    expected = integrate(field, z, SHIFT * even / (1 + (SHIFT - 1) * even), "midpoint")
    torch.testing.assert_close(landed, expected, rtol=1e-3, atol=1e-3)


def test_a_midpoint_student_takes_no_churn() -> None:
    with pytest.raises(ValueError, match="student with churn takes Euler steps"):
        student_module(RolloutConfig(steps=2, solver="midpoint", churn=0.5))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_the_students_loss_falls(batch: BlockBatch, solver: str) -> None:
    rollout = RolloutConfig(steps=2, solver=solver, time_shift=SHIFT)
    module = student_module(rollout, substeps=4, text_guidance=3.0, on_policy=0.5)
    logged: list[dict[str, torch.Tensor]] = []
    module.log_terms = lambda terms, size: logged.append(terms)  # type: ignore[method-assign]
    module._by_evaluation = lambda losses, step: {}  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(module.network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
        module.count_update()
    losses = torch.stack([terms["loss"].detach() for terms in logged])
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_the_teacher_is_no_part_of_the_state() -> None:
    module = student_module()
    plain = {name.split(".")[0] for name in module.state_dict()}
    assert plain == {"network", "averaged"}
    assert sum(1 for _ in module.parameters()) == 2 * sum(1 for _ in module.teacher.parameters())


def test_the_cost_counts_the_teachers_evaluations() -> None:
    forward = student_module(substeps=1, on_policy=0.0).gflop_per_sample() / 4
    module = student_module(substeps=2, on_policy=0.5, text_guidance=2.0, guidance_from=0.8)
    # The teacher's 6 steps are guided at t = 1, 0.94 and 0.86: 9 evaluations in 3 intervals.
    assert module.gflop_per_sample() == pytest.approx((3 + 0.5 + 3) * forward)


def test_a_student_samples_without_guidance() -> None:
    for rollout in (RolloutConfig(text_guidance=2.0), RolloutConfig(solver="dopri5")):
        with pytest.raises(ValueError, match="without guidance"):
            FlowTask(rollout=rollout, student=StudentConfig(teacher="x"))
    with pytest.raises(ValueError, match="FSDP2"):
        config = TrainConfig(task="flow", flow=FlowTask(student=StudentConfig(teacher="x")))
        replace(config, loop=replace(config.loop, strategy="fsdp"))
    for wrong in ({"substeps": 0}, {"solver": "dopri5"}, {"on_policy": 1.5}, {"guidance_from": 2.0}):
        with pytest.raises(ValueError, match="found"):
            StudentConfig(**wrong)


def arguments(tiny: TinyData, teacher: Path, runs: Path, *more: str) -> list[str]:
    own = [
        f"flow.student.teacher={teacher}",
        "flow.student.substeps=2",
        "flow.student.solver=euler",
        "flow.student.text_guidance=2.0",
        "flow.student.on_policy=0.5",
        "flow.rollout.steps=3",
        f"flow.rollout.time_shift={SHIFT}",
        "flow.flow.known_share=0.5",
    ]
    return tiny.arguments("flow", runs, *own, *more)


@pytest.fixture(scope="module")
def runs(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of four steps, and a whole run of its student."""
    folder = tmp_path_factory.mktemp("students")
    main(tiny.arguments("flow", folder, "name=teacher", "loop.max_steps=4"))
    main(arguments(tiny, folder / "flow/teacher/export", folder, "name=whole", "loop.max_steps=8"))
    return folder


def test_a_run_starts_from_its_teacher_and_exports_its_grid(
    tiny: TinyData,
    runs: Path,
    tmp_path: Path,
    curves_of: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    teacher = runs / "flow/teacher/export"
    system = load_system(runs / "flow/whole/export")
    grid = system.config.rollout
    assert (grid.steps, grid.time_shift, grid.solver, grid.text_guidance) == (3, SHIFT, "euler", 1.0)
    assert system.config.provenance["teacher"] == str(teacher)
    curves = curves_of(runs / "flow/whole")
    assert {f"val/loss_evaluation{index}" for index in (1, 2, 3)} <= curves.keys()
    assert {f"train/loss_evaluation{index}" for index in (1, 2, 3)} <= curves.keys()
    assert {
        "train/loss",
        "val/loss",
        "val/distance_student",
        "val/distance_teacher_midpoint",
    } <= curves.keys()
    pack([f"source={runs}/flow/whole/export", f"output={tmp_path}/packed", "half=false"])
    packed = load_system(tmp_path / "packed")
    assert packed.config.rollout == grid
    weights = packed.fmvt.x_embedder.proj.weight
    assert torch.equal(weights, system.fmvt.x_embedder.proj.weight)

    other = load_system(teacher)
    pack(
        [f"source={runs}/flow/whole/export", f"mean_with={teacher}", f"output={tmp_path}/mean", "half=false"]
    )
    own, theirs, mean = (s.fmvt.state_dict() for s in (system, other, load_system(tmp_path / "mean")))
    for name, value in mean.items():
        torch.testing.assert_close(value, (own[name] + theirs[name]) / 2, msg=name)
    assert any(not torch.equal(own[name], theirs[name]) for name in own)
    for part, found in ((other.avae.net.encoder, "another A-VAE"), (other.text_encoder.clip, "another text")):
        with torch.no_grad():
            kept = next(part.parameters()).clone()
            next(part.parameters()).add_(1)
            with pytest.raises(CTFlowError, match=found):
                mix(system, other, "there")
            next(part.parameters()).copy_(kept)
    for one in (system, other):
        one.fmvt = FMvT(replace(NETWORK, start_directions=2))
        assert one.fmvt.start_head is not None
        one.fmvt.start_head.measure([torch.randn(8, 4, 16, 4, 4)])
    with pytest.raises(CTFlowError, match="other principal directions"):
        mix(system, other, "there")
    main(arguments(tiny, teacher, tmp_path, "name=first", "loop.max_steps=1"))
    # the first step of the warm-up has a learning rate of 0
    first, before = load_fmvt(tmp_path / "flow/first/export/fmvt"), load_fmvt(teacher / "fmvt")
    for name, value in before.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
    assert not torch.equal(before.x_embedder.proj.weight, weights)


def test_a_decoder_that_was_trained_on_is_packed_with_its_generator(runs: Path, tmp_path: Path) -> None:
    source = runs / "flow/teacher/export"
    avae = load_system(source).avae
    with torch.no_grad():
        for parameter in avae.net.decoder.parameters():
            parameter.add_(0.1)
    save_avae(tmp_path / "avae", avae)
    pack([f"source={source}", f"avae={tmp_path}/avae", f"output={tmp_path}/packed", "half=false"])
    packed, before = load_system(tmp_path / "packed"), load_system(source)
    for name, value in packed.avae.state_dict().items():
        assert torch.equal(value, avae.state_dict()[name]), name
    assert not torch.equal(*(next(s.avae.net.decoder.parameters()) for s in (packed, before)))
    for name, value in packed.fmvt.state_dict().items():
        assert torch.equal(value, before.fmvt.state_dict()[name]), name

    half = ["avae_share=0.25", f"output={tmp_path}/mixed", "half=false"]
    pack([f"source={source}", f"avae={tmp_path}/avae", *half])
    mixed, own = load_system(tmp_path / "mixed").avae.state_dict(), before.avae.state_dict()
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * own[name] + 0.25 * avae.state_dict()[name], msg=name)
    with pytest.raises(CTFlowError, match=r"avae_share lies in \[0, 1\], found 1.5"):
        pack([f"source={source}", f"avae={tmp_path}/avae", "avae_share=1.5", f"output={tmp_path}/refused"])

    with torch.no_grad():
        next(avae.net.encoder.parameters()).add_(0.1)
    save_avae(tmp_path / "stranger", avae)
    with pytest.raises(CTFlowError, match="encoder or whitening"):
        pack([f"source={source}", f"avae={tmp_path}/stranger", f"output={tmp_path}/refused"])
    assert not (tmp_path / "refused").exists()


def test_stopping_and_going_on_equals_one_run(
    tiny: TinyData,
    runs: Path,
    tmp_path: Path,
    curves_of: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    for steps in (5, 8):
        main(arguments(tiny, runs / "flow/teacher/export", tmp_path, "name=parts", f"loop.max_steps={steps}"))
    # A run in parts has one more validation, where its first part ended.
    ours, theirs = curves_of(tmp_path / "flow/parts"), curves_of(runs / "flow/whole")
    for name in ("train/loss", "val/loss", "val/distance_student", "val/distance_teacher_euler"):
        assert theirs[name] == [point for point in ours[name] if point[0] in dict(theirs[name])], name
    states = [
        torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        for folder in (runs / "flow/whole", tmp_path / "flow/parts")
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_run_with_churn_names_it_and_compares_equal_noise(
    tiny: TinyData,
    runs: Path,
    tmp_path: Path,
    curves_of: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    more = ["flow.rollout.churn=0.5", "flow.rollout.churn_below=0.8", "name=churned"]
    more += ["loop.max_steps=2", "loop.val_every=2", "flow.optimizer.lr=1e-12", "flow.optimizer.name=adamw"]
    more += ["flow.student.text_guidance=1.0"]
    main(arguments(tiny, runs / "flow/teacher/export", tmp_path, *more))
    grid = load_system(tmp_path / "flow/churned/export").config.rollout
    assert (grid.churn, grid.churn_below, grid.solver) == (0.5, 0.8, "euler")
    last = {name: points[-1][1] for name, points in curves_of(tmp_path / "flow/churned").items()}
    # The student is its teacher: on equal noise both are equally far from the fine solution.
    assert last["val/distance_student"] == pytest.approx(last["val/distance_teacher_euler"], rel=1e-4)
    assert "val/distance_teacher_midpoint" not in last


def test_validation_is_relative_to_the_teachers_single_steps(
    tiny: TinyData,
    runs: Path,
    tmp_path: Path,
    curves_of: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    """A student that is its teacher, without guidance, does in one step what its teacher does."""
    more = [
        "flow.student.text_guidance=1.0",
        "flow.optimizer.lr=1e-12",
        "flow.optimizer.name=adamw",
        "name=same",
    ]
    more += ["loop.max_steps=2", "loop.val_every=2"]
    main(arguments(tiny, runs / "flow/teacher/export", tmp_path, *more))
    last = {name: points[-1][1] for name, points in curves_of(tmp_path / "flow/same").items()}
    for index in (1, 2, 3):
        assert last[f"val/loss_evaluation{index}"] == pytest.approx(1.0, rel=1e-3)
    assert last["val/distance_student"] == pytest.approx(last["val/distance_teacher_euler"], rel=1e-4)


def test_a_teacher_that_does_not_fit_the_shards_is_refused(
    tiny: TinyData, runs: Path, tmp_path: Path
) -> None:
    save_fmvt(tmp_path / "stranger", teacher_network())
    with pytest.raises(ConfigError, match="stranger"):
        main(arguments(tiny, tmp_path / "stranger", tmp_path, "name=refused"))
    system = load_system(runs / "flow/teacher/export")
    torch.manual_seed(1)
    save_system(tmp_path / "other", replace(system, avae=AVAE(system.avae.config)))
    searched = [a for a in arguments(tiny, tmp_path / "other", tmp_path) if not a.startswith("flow.avae")]
    with pytest.raises(ConfigError, match="other/avae"):
        main([*searched, "name=refused"])


@pytest.mark.slow
def test_two_processes_train_like_one(
    tiny: TinyData,
    runs: Path,
    tmp_path: Path,
    curves_of: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    """The same global batch: losses within 1e-5, those by evaluation too."""
    half = ["name=two", "loop.max_steps=8", "data.batch_size=2", "loop.devices=2"]
    two_processes([arguments(tiny, runs / "flow/teacher/export", tmp_path, *half)], tmp_path / "lines")
    ours, one = curves_of(tmp_path / "flow/two"), curves_of(runs / "flow/whole")
    for name in (
        "train/loss",
        *(f"train/loss_evaluation{index}" for index in (1, 2, 3)),
        "val/distance_student",
    ):
        assert dict(ours[name]) == pytest.approx(dict(one[name]), rel=1e-5, abs=1e-5, nan_ok=True), name
