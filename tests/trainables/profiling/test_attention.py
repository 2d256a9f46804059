"""The similarity of attention maps against loops, planted networks and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.analysis.collapse import onset
from trainables.models.block import Attention, Reattend
from trainables.models.vit import ViTConfig
from trainables.profiling import attention as profiling
from trainables.profiling.attention import attention_similarity

BLOCKS, HEADS = 4, 2


@pytest.fixture
def network() -> nn.Module:
    """Five tokens; with large queries and keys, so that maps differ from uniform ones."""
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=8, width=8, depth=BLOCKS, heads=HEADS, mlp_ratio=2)
    network = config.network(3)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight *= 4
    return network


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def attentions(network: nn.Module) -> list[Attention]:
    return [module for module in network.modules() if isinstance(module, Attention)]


def seen_by_observers(network: nn.Module, images: Tensor, after: bool) -> list[np.ndarray]:
    """The maps of each block, (B, H, T, T)."""
    seen: list[np.ndarray] = []
    for attention in attentions(network):
        attention.observer = lambda *maps: seen.append(maps[after].double().numpy())
    with torch.no_grad():
        network.eval()(images)
    for attention in attentions(network):
        attention.observer = None
    return seen


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(a * b) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b)))


@pytest.mark.parametrize("transform", [False, True])
def test_it_is_what_loops_over_images_heads_and_tokens_give(network, images, transform):
    if transform:
        for attention in attentions(network):
            attention.maps = Reattend(HEADS, nn.Identity())
    found = attention_similarity(network, [images], 0.7)
    kinds = ["softmax", "transformed"] if transform else ["softmax"]
    assert [(one.maps, one.tokens) for one in found] == [(k, t) for k in kinds for t in ("all", "patches")]
    for one in found:
        maps = seen_by_observers(network, images, one.maps == "transformed")
        if one.tokens == "patches":
            maps = [each[..., 1:, 1:] for each in maps]
        num_tokens = maps[0].shape[-1]
        assert one.num_tokens == num_tokens
        for head in range(HEADS):
            for p in range(BLOCKS):
                for q in range(BLOCKS):
                    values = [
                        cosine(a[head, :, token], b[head, :, token])
                        for a, b in zip(maps[p], maps[q], strict=True)
                        for token in range(num_tokens)
                    ]
                    assert one.matrix_HLL[head, p, q] == pytest.approx(np.mean(values), abs=1e-6)
                    if q == p + 1:
                        share = np.mean([value > 0.7 for value in values])
                        assert one.share_HK[head, p] == pytest.approx(share)
                if one.entropy_HL is not None:
                    rows = [row / sum(row) for each in maps[p] for row in each[head]]
                    entropies = [-sum(row * np.log(row)) / math.log(num_tokens) for row in rows]
                    assert one.entropy_HL[head, p] == pytest.approx(np.mean(entropies), abs=1e-6)


def test_a_block_is_itself_and_the_matrix_is_symmetric_and_within_0_and_1(network, images):
    for one in attention_similarity(network, [images], 0.9):
        assert np.allclose(np.diagonal(one.matrix_HLL, axis1=1, axis2=2), 1, atol=1e-6)
        assert np.allclose(one.matrix_HLL, one.matrix_HLL.transpose(0, 2, 1))
        assert one.matrix_HLL.min() >= 0
        assert one.matrix_HLL.max() <= 1 + 1e-6


def test_uniform_maps_are_alike_and_have_all_entropy(network, images):
    with torch.no_grad():
        for attention in attentions(network):
            attention.qkv.weight.zero_()
    for one in attention_similarity(network, [images], 0.9):
        assert np.allclose(one.matrix_HLL, 1)
        assert np.allclose(one.share_HK, 1)
        assert np.allclose(one.entropy_HL, 1)


def test_blocks_that_repeat_the_maps_of_one_are_alike(network, images):
    # Blocks 3 and 4 get the same queries and keys, and what passes through block 3 is left as it is.
    first, last = network.blocks[2], network.blocks[3]
    with torch.no_grad():
        last.load_state_dict(first.state_dict())
        for linear in (first.attn.proj, first.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    one = attention_similarity(network, [images], 0.9)[0]
    similarity = np.diagonal(one.matrix_HLL.mean(0), 1)
    assert similarity[2] == pytest.approx(1)
    assert max(similarity[:2]) < 0.9
    assert np.allclose(one.share_HK[:, 2], 1)
    assert onset(list(similarity), 0.9) == 4


def test_a_stream_of_batches_gives_what_all_at_once_gives(network, images, monkeypatch):
    whole = attention_similarity(network, [images], 0.7)
    # One image at a time, as where the maps of two take too much memory.
    monkeypatch.setattr(profiling, "MAPS_BYTES", 1)
    told: list[int] = []
    parts = attention_similarity(network, iter([images[:3], images[3:5], images[5:]]), 0.7, told.append)
    assert told == list(range(1, 8))
    for one, other in zip(whole, parts, strict=True):
        assert np.allclose(one.matrix_HLL, other.matrix_HLL, atol=1e-6)
        assert np.array_equal(one.share_HK, other.share_HK)
        assert np.allclose(one.entropy_HL, other.entropy_HL, atol=1e-6)


def test_no_more_images_pass_at_a_time_than_their_maps_leave_room_for(network, images, monkeypatch):
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    # Of one image: 4 blocks, 2 heads, 5 tokens, 4 bytes.
    monkeypatch.setattr(profiling, "MAPS_BYTES", 2 * BLOCKS * HEADS * 5 * 5 * 4)
    attention_similarity(network, [images], 0.9)
    assert sizes == [1, 2, 2, 2]


def test_maps_differ_after_re_attention_and_not_after_its_identity(network, images):
    for attention in attentions(network):
        attention.maps = Reattend(HEADS, nn.Identity(), identity=True)
    soft, _, same, _ = attention_similarity(network, [images], 0.9)
    assert (soft.maps, same.maps, same.entropy_HL) == ("softmax", "transformed", None)
    assert np.allclose(soft.matrix_HLL, same.matrix_HLL, atol=1e-6)
    for attention in attentions(network):
        attention.maps = Reattend(HEADS, nn.Identity())
    soft, _, changed, _ = attention_similarity(network, [images], 0.9)
    assert not np.allclose(soft.matrix_HLL, changed.matrix_HLL, atol=1e-2)


def test_columns_of_tiny_numbers_count_and_those_of_zeros_are_alike_to_nothing():
    sums = profiling._Sums(0.9)
    maps = torch.ones(2, 1, 1, 3, 3)
    maps[..., 1], maps[..., 2] = 1e-30, 0.0
    sums.add(maps, True)
    assert np.allclose(sums.similarity("softmax", "all").matrix_HLL, 2 / 3)


def test_observers_are_as_before_also_after_an_error(network, images):
    mine = lambda *maps: None  # noqa: E731
    attentions(network)[0].observer = mine
    with pytest.raises(RuntimeError):
        attention_similarity(network, [images[:, :1]], 0.9)
    assert [attention.observer for attention in attentions(network)] == [mine, None, None, None]


def test_a_network_without_maps_and_no_images_are_refused(network):
    with pytest.raises(ValueError, match="no attention"):
        attention_similarity(nn.Linear(2, 2), [torch.zeros(1, 2)], 0.9)
    with pytest.raises(ValueError, match="no images"):
        attention_similarity(network, [], 0.9)
