"""The block against timm's, and each of its hooks against a closed form."""

import pytest
import torch
from timm.models.cait import TalkingHeadAttn
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from trainables.models.block import Block, HeadMix, Reattend

WIDTH, HEADS, TOKENS = 12, 3, 7


def blocks(**settings) -> tuple[Block, TimmBlock]:
    """Ours and timm's, with the same random weights."""
    torch.manual_seed(0)
    ours = Block(WIDTH, HEADS, 2, **settings)
    theirs = TimmBlock(WIDTH, HEADS, 2, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def test_without_hooks_it_is_timms_to_the_bit_with_its_gradients(x):
    ours, theirs = blocks()
    results = []
    for block in (ours, theirs):
        out = block(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in block.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_hooks_that_change_nothing_change_nothing(x):
    ours, theirs = blocks()
    ours.attn.rows = torch.ones(HEADS, TOKENS)
    ours.attn.channels = torch.ones(WIDTH)
    ours.attn.maps = Reattend(HEADS, nn.BatchNorm2d(HEADS, eps=0.0), identity=True).eval()
    ours.mlp.act.tokens, ours.mlp.act.channels = torch.ones(TOKENS), torch.ones(2 * WIDTH)
    ours.gate = torch.ones(())
    assert torch.allclose(ours(x), theirs(x), atol=2e-6)


def test_the_observer_sees_the_maps_before_and_after_they_are_changed(x):
    ours, _ = blocks()
    ours.attn.maps = Reattend(HEADS, nn.Identity())
    seen = []
    ours.attn.observer = lambda *maps: seen.append(maps)
    ours(x)
    [(soft, changed)] = seen
    assert soft.shape == changed.shape == (4, HEADS, TOKENS, TOKENS)
    assert torch.allclose(soft.sum(-1), torch.ones(4, HEADS, TOKENS))
    theta, bias = ours.attn.maps.mix.weight[:, :, 0, 0], ours.attn.maps.mix.bias
    expected = torch.einsum("gh,bhij->bgij", theta, soft) + bias[:, None, None]
    assert torch.allclose(changed, expected, atol=1e-6)
    assert not torch.allclose(changed.sum(-1), torch.ones(()))
    # Rows are those of queries.
    q, k, _ = ours.attn.qkv(ours.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    assert torch.allclose(soft, (q @ k.mT / 2).softmax(-1), atol=1e-6)


def test_mixing_by_a_permutation_permutes_the_heads(x):
    ours, theirs = blocks()
    order = torch.tensor([2, 0, 1])
    reattend = Reattend(HEADS, nn.Identity())
    with torch.no_grad():
        reattend.mix.weight.copy_(torch.eye(HEADS)[order][:, :, None, None])
        reattend.mix.bias.zero_()
        # Queries and keys of the heads in that order give the same maps.
        for tensor in (theirs.attn.qkv.weight, theirs.attn.qkv.bias):
            parts = tensor.unflatten(0, (3, HEADS, -1))
            parts[:2] = parts[:2, order].clone()
    ours.attn.maps = reattend
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_the_mix_gets_gradients(x):
    ours, _ = blocks()
    ours.attn.maps = Reattend(HEADS, nn.BatchNorm2d(HEADS))
    ours(x).square().sum().backward()
    assert ours.attn.maps.mix.weight.grad.abs().sum() > 0
    assert ours.attn.maps.norm.weight.grad.abs().sum() > 0


def test_talking_heads_are_timms(x):
    ours, _ = blocks()
    ours.attn.scores, ours.attn.maps = HeadMix(HEADS), HeadMix(HEADS)
    theirs = TalkingHeadAttn(WIDTH, HEADS, qkv_bias=True)
    named = {
        "qkv": ours.attn.qkv,
        "proj": ours.attn.proj,
        "proj_l": ours.attn.scores.mix,
        "proj_w": ours.attn.maps.mix,
    }
    theirs.load_state_dict(
        {f"{name}.{key}": value for name, layer in named.items() for key, value in layer.state_dict().items()}
    )
    assert torch.allclose(ours.attn(x), theirs(x), atol=1e-6)


def test_a_row_that_is_switched_off_is_squared_scores_over_the_tokens(x):
    ours, _ = blocks()
    seen = []
    ours.attn.observer = lambda _, maps: seen.append(maps)
    ours(x)
    ours.attn.rows = torch.ones(HEADS, TOKENS)
    ours.attn.rows[1, 4] = 0
    ours(x)
    on, off = seen
    q, k, _ = ours.attn.qkv(ours.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    assert torch.allclose(off[:, 1, 4], (q @ k.mT / 2)[:, 1, 4].square() / TOKENS, atol=1e-6)
    off[:, 1, 4] = on[:, 1, 4]
    assert torch.equal(on, off)


def test_masked_channels_are_as_if_they_were_cut(x):
    ours, theirs = blocks()
    cut = torch.tensor([1.0, 0, 1, 1] * HEADS)
    ours.attn.channels = cut
    hidden = (torch.arange(2 * WIDTH) % 3 > 0).float()
    ours.mlp.act.channels = hidden
    with torch.no_grad():
        theirs.attn.qkv.weight.mul_(cut.repeat(3)[:, None])
        theirs.attn.qkv.bias.mul_(cut.repeat(3))
        theirs.mlp.fc2.weight.mul_(hidden)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_a_token_without_gelu_has_a_linear_mlp(x):
    ours, theirs = blocks()
    ours.mlp.act.tokens = torch.tensor([1.0, 1, 0, 1, 1, 1, 1])
    changed = ours.mlp(x)
    assert torch.allclose(changed[:, 2], ours.mlp.fc2(ours.mlp.fc1(x[:, 2])), atol=1e-6)
    kept = [0, 1, 3, 4, 5, 6]
    assert torch.allclose(changed[:, kept], theirs.mlp(x)[:, kept], atol=1e-6)


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_a_gate_scales_what_both_branches_add(gate, x):
    ours, theirs = blocks()
    ours.gate = torch.tensor(gate)
    after = x + gate * theirs.attn(theirs.norm1(x))
    assert torch.allclose(ours(x), after + gate * theirs.mlp(theirs.norm2(after)), atol=1e-6)


def test_doubled_branches_are_those_of_deepvit_s(x):
    # As its code has it: half of the input goes into the norms, and twice of what comes out is added.
    ours, theirs = blocks(branch_scale=2.0)
    theirs.norm1.eps = theirs.norm2.eps = ours.norm1.eps = ours.norm2.eps = 0.0
    after = x + theirs.attn(theirs.norm1(x * 0.5)) / 0.5
    assert torch.allclose(ours(x), after + theirs.mlp(theirs.norm2(after * 0.5)) / 0.5, atol=1e-5)
