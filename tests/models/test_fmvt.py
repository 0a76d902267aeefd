"""The fresh FMvT: nulls, masks, numbers, sizes, shortcuts and its errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ctflow.config.models import FMvTConfig
from ctflow.models import Conditions, FMvT
from ctflow.models.fmvt_layers import SelfAttention, TextTokens, attention

TINY = FMvTConfig(
    input_size=[16, 4, 4], latent_channels=4, hidden_size=32, depth=2, num_heads=4, text_dim=12, text_tokens=5
)


def build(config: FMvTConfig = TINY, seed: int = 0) -> FMvT:
    """A model whose zero-initialised gates and outputs are random, so that every input matters."""
    torch.manual_seed(seed)
    model = FMvT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def model() -> FMvT:
    return build()


def ask(batch, **conditions):
    """Arguments of a call with further conditions."""
    x, t, text, previous = batch
    return x, t, Conditions(text, previous, **conditions)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 16, 4, 4, generator=generator)
    previous = torch.randn(3, 4, 16, 4, 4, generator=generator)
    return x, torch.tensor([0.2, 0.5, 0.9]), torch.randn(3, 5, 12, generator=generator), previous


def test_a_fresh_model_starts_at_zero(batch):
    assert torch.equal(FMvT(replace(TINY, preconditioned=False))(*ask(batch)), torch.zeros(3, 4, 16, 4, 4))


@pytest.mark.parametrize(
    "parts",
    [{}, {"local_channels": 6}, {"local_channels": 6, "local_blocks": 2}, {"fine_size": 16, "fine_depth": 2}],
)
def test_every_parameter_gets_a_gradient(batch, parts):
    model = build(replace(TINY, **parts)).train()
    some = torch.tensor([True, False, False])
    numbers = {"position": torch.tensor([0.0, 16, math.nan]), "length": torch.tensor([40.0, 50, 60])}
    numbers |= {
        "spacing": torch.tensor([[4.0, 3, 3], [2.5, 3, 3], [math.nan] * 3]),
        "previous_noise": torch.tensor([0.1, 0.2, math.nan]),
    }
    known = torch.arange(16) < torch.tensor([[0], [4], [2]])
    x, t, told = ask(batch, text_mask=torch.ones(3, 5, dtype=torch.bool), known=known, **numbers)
    model(x, t, told.dropped(some, some, some)).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_heads_are_merged_in_order():
    """Against torch's own multi-head attention, with the same weights."""
    ours = SelfAttention(32, 4, "space", scrambled_heads=False)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.proj.weight.data, ours.proj.bias.data
    x = torch.randn(2, 3, 7, 32)
    expected, _ = theirs(*[x.flatten(0, 1)] * 3)
    torch.testing.assert_close(ours(x), expected.view(2, 3, 7, 32), rtol=1e-4, atol=1e-5)
    time = SelfAttention(32, 4, "time", scrambled_heads=False)
    time.load_state_dict(ours.state_dict())
    torch.testing.assert_close(time(x.transpose(1, 2)), ours(x).transpose(1, 2), rtol=1e-4, atol=1e-5)
    scrambled = SelfAttention(32, 4, "space", scrambled_heads=True)
    scrambled.load_state_dict(ours.state_dict())
    assert not torch.allclose(scrambled(x), ours(x), atol=1e-3)


def test_bfloat16_attention_in_training_equals_the_fused_kernel():
    q, k, v = (torch.randn(2, 4, n, 8).bfloat16().requires_grad_() for n in (6, 5, 5))
    mask = torch.tensor([True, True, False, True, False]).expand(2, 1, 1, 5)
    found = attention(q, k, v, mask)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_single_token_shortcut_equals_the_general_path(batch):
    model = build(replace(TINY, text_tokens=1))
    cross = model.blocks[0].cross_attn
    tokens = model.y_embedder(batch[2][:, :1])
    x = torch.randn(3, 9, 32)
    general = cross.attend(x, *cross.keys_values(tokens.tokens), None)
    shortcut = cross(x, cross.prepare(tokens))
    assert shortcut.shape == (3, 1, 32)
    torch.testing.assert_close(shortcut.expand_as(general), general, rtol=1e-5, atol=1e-6)
    repeated = cross(x, cross.prepare(TextTokens(tokens.tokens.expand(-1, 4, -1))))
    torch.testing.assert_close(repeated, general, rtol=1e-5, atol=1e-6)


def test_single_token_queries_are_frozen():
    frozen = [
        name for name, p in FMvT(replace(TINY, text_tokens=1)).named_parameters() if not p.requires_grad
    ]
    assert frozen == [
        f"blocks.{i}.cross_attn.q_linear.{part}" for i in range(2) for part in ("weight", "bias")
    ]


@torch.no_grad()
@pytest.mark.parametrize("parts", [{}, {"fine_size": 16, "fine_depth": 1}])
def test_text_encoded_once_is_the_same_text(batch, parts):
    model = build(replace(TINY, **parts))
    x, t, text, previous = batch
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    direct = model(x, t, Conditions(text, previous, text_mask=mask))
    encoded = model.encode_text(text, mask)
    torch.testing.assert_close(model(x, t, Conditions(encoded, previous)), direct, rtol=1e-5, atol=1e-6)
    row = model(x[1:2], t[1:2], Conditions(encoded.select(torch.tensor([1])), previous[1:2]))
    torch.testing.assert_close(row, direct[1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masked_tokens_do_not_matter(model, batch):
    x, t, text, previous = batch
    mask = torch.tensor([1, 1, 1, 0, 0]).bool().expand(3, 5)
    short = model(x, t, Conditions(text[:, :3], previous))
    torch.testing.assert_close(
        model(x, t, Conditions(text, previous, text_mask=mask)), short, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(model(x, t, Conditions(text, previous)), short, atol=1e-3)


@torch.no_grad()
def test_no_text(model, batch):
    x, t, text, previous = batch
    without = model(x, t, Conditions(None, previous))
    drop = torch.tensor([True, False, True])
    dropped = model(x, t, Conditions(text, previous).dropped(text=drop))
    torch.testing.assert_close(dropped[drop], without[drop], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dropped[1], without[1], atol=1e-3)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0] = False
    empty = model(x, t, Conditions(text, previous, text_mask=mask))
    torch.testing.assert_close(empty[0], without[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_previous_block(model, batch):
    x, t, text, previous = batch
    without = model(x, t, Conditions(text, None))
    drop = torch.tensor([False, True, False])
    dropped = model(x, t, Conditions(text, previous).dropped(previous=drop))
    torch.testing.assert_close(dropped[1], without[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dropped[::2], model(*ask(batch))[::2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_position_and_length_are_inputs_and_may_be_unknown(model, batch):
    unknown = torch.full((3,), math.nan)
    position, length = torch.tensor([0.0, 16, 32]), torch.tensor([60.0, 70, 80])
    plain = model(*ask(batch))
    torch.testing.assert_close(model(*ask(batch, position=unknown, length=unknown)), plain)
    both = model(*ask(batch, position=position, length=length))
    for other in (
        plain,
        model(*ask(batch, position=position)),
        model(*ask(batch, position=position + 2, length=length)),
    ):
        assert not torch.allclose(both, other, atol=1e-3)
    x, t, told = ask(batch, position=position, length=length)
    dropped = model(x, t, told.dropped(length=torch.ones(3, dtype=torch.bool)))
    torch.testing.assert_close(dropped, model(*ask(batch, position=position)))


@torch.no_grad()
def test_other_latent_sizes(model):
    x = torch.randn(1, 4, 8, 6, 10)
    assert model(x, 0.5, Conditions(None, x)).shape == x.shape
    own = build(replace(TINY, input_size=[8, 6, 10]))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("pos_embed")}
    own.load_state_dict(state, strict=False)
    torch.testing.assert_close(own(x, 0.5, Conditions(None, x)), model(x, 0.5, Conditions(None, x)))


def test_activation_checkpointing_changes_nothing(batch):
    plain, saving = build().train(), build(replace(TINY, activation_checkpointing=True)).train()
    for model in (plain, saving):
        model(*ask(batch)).square().mean().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)


def test_errors_echo_the_shapes(model, batch):
    x, t, text, previous = batch
    with pytest.raises(ValueError, match=r"\[B, 4, T, h, w\], found \[3, 3, 16, 4, 4\]"):
        model(x[:, :3], t, Conditions(text, previous))
    with pytest.raises(ValueError, match=r"\[16, 4, 3\] is not divisible by the patch \[2, 2, 2\]"):
        model(x[..., :3], t, Conditions(text, previous))
    with pytest.raises(ValueError, match=r"\[3, 4, 16, 4, 4\], found \[2, 4, 16, 4, 4\]"):
        model(x, t, Conditions(text, previous[:2]))
    with pytest.raises(ValueError, match=r"\[B, L, 12\], found \[3, 5, 11\]"):
        model(x, t, Conditions(text[..., :11], previous))
    with pytest.raises(ValueError, match=r"\[3, 5\], found \[3, 4\]"):
        model(x, t, Conditions(text, previous, text_mask=torch.ones(3, 4)))
    with pytest.raises(ValueError, match=r"text has 2 rows for a batch of 3"):
        model(x, t, Conditions(text[:2], previous))
    with pytest.raises(
        ValueError, match=r"t must be a scalar, \[B\] = \[3\] or \[B, T\] = \[3, 16\], found \[2\]"
    ):
        model(x, t[:2], Conditions(text, previous))
    with pytest.raises(ValueError, match=r"length must be \[B\] = \[3\], found \[1\]"):
        model(x, t, Conditions(text, previous, length=torch.ones(1)))
    with pytest.raises(ValueError, match="belongs to encode_text"):
        model(x, t, Conditions(model.encode_text(text), previous, torch.ones(3, 5)))
    with pytest.raises(ValueError, match="knows no clean slices"):
        known = torch.zeros(3, 16, dtype=torch.bool)
        build(replace(TINY, slice_times=False))(x, t, Conditions(text, previous, known=known))
    with pytest.raises(ValueError, match="knows no null previous block"):
        build(replace(TINY, learned_nulls=False))(x, t, Conditions(text, None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [2, 3, 2]}, r"\[16, 4, 4\] is not divisible by patch_size \[2, 3, 2\]"),
        ({"num_heads": 5}, "hidden_size=32, num_heads=5"),
        ({"depth": 0}, "'depth': 0"),
        ({"local_channels": -1}, "0 or positive, found -1"),
        ({"local_blocks": 2}, "local_blocks=2 need local_channels"),
        ({"fine_size": 16}, "both 0 or both positive, found 16 and 0"),
        ({"fine_size": 12, "fine_depth": 1}, "a multiple of a head's width, 8, found 12"),
        ({"fine_size": 16, "fine_depth": 1, "patch_size": [1, 1, 2]}, r"even, found \[1, 1, 2\]"),
        ({"input_size": [16, 4]}, r"3 numbers, found \[16, 4\]"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@torch.no_grad()
def test_a_slice_has_a_time_of_its_own(model, batch):
    x, t, text, previous = batch
    one = model(x, t, Conditions(text, previous))
    torch.testing.assert_close(model(x, t[:, None].expand(3, 16), Conditions(text, previous)), one)
    known = torch.arange(16) < torch.tensor([[0], [4], [16]])
    flagged = model(x, t, Conditions(text, previous, known=known))
    torch.testing.assert_close(flagged[0], one[0], rtol=1e-4, atol=1e-5)
    # The times of known slices are 0, whatever is passed for them.
    times = t[:, None].expand(3, 16).masked_fill(known, 0.7)
    torch.testing.assert_close(model(x, times, Conditions(text, previous, known=known)), flagged)
    unflagged = model(x, t[:, None].masked_fill(known, 0.0), Conditions(text, previous))
    assert not torch.allclose(unflagged[1], flagged[1], atol=1e-3)


@torch.no_grad()
def test_preconditioning_gives_the_best_line_for_free():
    """With the network's part at zero, the velocity is the least-squares line of noise - data in z."""
    model = FMvT(TINY)
    generator = torch.Generator().manual_seed(2)
    data, noise = torch.randn(2, 64, 4, 16, 4, 4, generator=generator)
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        z, velocity = (1 - t) * data + t * noise, noise - data
        found = model(z, t, Conditions(None, torch.zeros_like(z)))
        line, least = ((z * v).mean() / z.square().mean() for v in (found, velocity))
        torch.testing.assert_close(found, line * z, rtol=1e-4, atol=1e-5)
        assert abs(float(line - least)) < 0.02


@torch.no_grad()
def test_spacing_and_noise_of_the_previous_block_are_inputs(model, batch):
    place = {"position": torch.full((3,), 16.0), "length": torch.full((3,), 60.0)}
    spacing = torch.tensor([4.0, 3.0, 3.0]).expand(3, 3)
    plain = model(*ask(batch, spacing=spacing, **place))
    changes = (
        {"spacing": spacing * torch.tensor([0.5, 1, 1])},
        {"spacing": spacing * torch.tensor([1, 0.8, 0.8])},
        {"spacing": spacing, "previous_noise": torch.full((3,), 0.2)},
    )
    for change in changes:
        assert not torch.allclose(model(*ask(batch, **change, **place)), plain, atol=1e-3)
    unknown = model(*ask(batch, spacing=torch.full((3, 3), math.nan), **place))
    torch.testing.assert_close(model(*ask(batch, **place)), unknown)
    with pytest.raises(ValueError, match=r"spacing must be \[B, 3\] = \[3, 3\], found \[3\]"):
        model(*ask(batch, spacing=torch.ones(3)))


@torch.no_grad()
def test_a_local_head_sees_across_patches_and_starts_at_zero(batch):
    x, t, told = ask(batch)
    torch.manual_seed(0)
    fresh = FMvT(replace(TINY, local_channels=6))
    without = FMvT(TINY)
    without.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("local_head.")})
    assert torch.equal(fresh(x, t, told), without(x, t, told))

    # Without attention a token hears nothing of its neighbours: what reaches them goes through the head.
    reached = {}
    for width, blocks in ((0, 0), (6, 0), (6, 1)):
        model = build(replace(TINY, depth=1, local_channels=width, local_blocks=blocks))
        for name, parameter in model.named_parameters():
            if "attn" in name:
                parameter.zero_()
        other = x.clone()
        other[:, :, 7, 1, 1] += 1
        reached[width + blocks] = (model(other, t, told) - model(x, t, told)).abs().sum(
            dim=(0, 1)
        ) > 0  # [16, 4, 4]
    own = torch.zeros(16, 4, 4, dtype=torch.bool)
    own[6:8, :2, :2] = True
    assert torch.equal(reached[0], own)
    near = torch.zeros(16, 4, 4, dtype=torch.bool)
    near[3:11] = True  # three convolutions, each one further than the patch
    assert torch.equal(reached[6], near)
    near[1:13] = True  # two more
    assert torch.equal(reached[7], near)


@pytest.mark.parametrize("blocks", [0, 2])
def test_new_local_channels_change_nothing_and_learn(batch, blocks):
    x, t, told = ask(batch)
    narrow = build(replace(TINY, local_channels=6, local_blocks=blocks)).requires_grad_(True)
    wide = FMvT(replace(TINY, local_channels=10, local_blocks=blocks))
    assert narrow.local_head is not None and wide.local_head is not None
    head = narrow.local_head.widened(10)
    state = {f"local_head.{name}": value for name, value in head.state_dict().items()}
    wide.load_state_dict(narrow.state_dict() | state)
    with torch.no_grad():
        torch.testing.assert_close(wide(x, t, told), narrow(x, t, told), rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.SGD(wide.parameters(), lr=1e-2)
    # The way to the output opens in the first step; the layers before it learn in the second.
    for _ in range(2):
        optimizer.zero_grad()
        wide(x, t, told).square().mean().backward()
        optimizer.step()
    learned = wide.local_head
    for layer, before in ((learned.enter, head.enter), (learned.middle, head.middle)):
        assert not torch.equal(layer.weight[6:], before.weight[6:])
    assert learned.proj.weight[:, 6:].any() and learned.middle.weight[:6, 6:].any()
    with pytest.raises(ValueError, match="6 channels cannot become one of 4"):
        narrow.local_head.widened(4)


@torch.no_grad()
def test_a_fine_stage_sees_what_a_token_does_not_and_starts_at_zero(batch):
    x, t, told = ask(batch)
    fine = {"fine_size": 16, "fine_depth": 1}
    fresh, without = FMvT(replace(TINY, **fine)), FMvT(TINY)
    without.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("fine.")})
    assert torch.equal(fresh(x, t, told), without(x, t, told))

    # Without attention a change stays in its patch: of 2×2×2 latents, and in the fine stage of 2×1×1.
    model = build(replace(TINY, depth=1, **fine))
    assert model.fine is not None and model.fine.patch_size == [2, 1, 1]
    for name, parameter in model.named_parameters():
        if "attn" in name or "from_coarse" in name or name == "final_layer.linear.weight":
            parameter.zero_()
    other = x.clone()
    other[:, :, 7, 1, 2] += 1
    reached = (model(other, t, told) - model(x, t, told)).abs().sum(dim=(0, 1)) > 0  # [16, 4, 4]
    own = torch.zeros(16, 4, 4, dtype=torch.bool)
    own[6:8, 1, 2] = True
    assert torch.equal(reached, own)


@torch.no_grad()
def test_a_fine_stage_hears_each_token_at_its_own_place():
    model = build(replace(TINY, fine_size=16, fine_depth=1))
    assert model.fine is not None
    coarse = torch.zeros(3, 8, 4, 32)
    coarse[:, 3, 2] = 1  # slices 6 and 7, second row, first column of 2×2 patches
    time, texts = torch.zeros(3, 8, 32), (model.fine.read(model.y_embedder(None, batch=3)),)
    for name, parameter in model.fine.named_parameters():
        if "attn" in name:
            parameter.zero_()
    inputs = torch.zeros(3, 13, 16, 4, 4)
    silent = model.fine(inputs, torch.zeros_like(coarse), time, texts, (8, 2, 2))
    reached = (model.fine(inputs, coarse, time, texts, (8, 2, 2)) - silent).abs().sum(dim=(0, 1)) > 0
    own = torch.zeros(16, 4, 4, dtype=torch.bool)
    own[6:8, 2:, :2] = True
    assert torch.equal(reached, own)


def test_a_fine_stage_recomputed_in_the_backward_has_the_same_gradients(batch):
    fine = {"fine_size": 16, "fine_depth": 2}
    plain = build(replace(TINY, **fine)).train()
    saving = build(replace(TINY, activation_checkpointing=True, **fine)).train()
    for model in (plain, saving):
        model(*ask(batch)).square().mean().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@torch.no_grad()
def test_new_local_blocks_are_the_identity(batch):
    x, t, told = ask(batch)
    headed = build(replace(TINY, local_channels=6))
    grown = FMvT(replace(TINY, local_channels=6, local_blocks=3))
    grown.load_state_dict(
        {k: v for k, v in grown.state_dict().items() if ".blocks." in k} | headed.state_dict()
    )
    assert torch.equal(headed(x, t, told), grown(x, t, told))
