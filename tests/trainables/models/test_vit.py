import math
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.models.pvt_v2 import OverlapPatchEmbed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, pad, relu
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import NAMED_MODELS
from trainables.models.attention import Softmax
from trainables.models.block import HeadMix, Reattend
from trainables.models.stems import STEMS, StemWord, conv_stem
from trainables.models.vision_transformer import build_stem
from trainables.models.vit import SIZES, ViTConfig
from trainables.optim import SGD

# Xiao et al. 2021, table 1: parameters and multiply-adds by the formulas of the authors' code for 1000
# classes (the printed flops are rounded, and off by up to 0.1 G for 18GF and 36GF); activations as printed.
PAPER = {
    "vit_p_1gf": (4.83, 1.08, 5.5),
    "vit_p_4gf": (18.51, 3.91, 11.1),
    "vit_p_18gf": (86.57, 17.58, 24.0),
    "vit_p_36gf": (178.36, 36.00, 37.3),
    "vit_c_1gf": (4.57, 1.08, 5.7),
    "vit_c_4gf": (17.75, 3.97, 11.3),
    "vit_c_18gf": (81.57, 17.73, 24.1),
    "vit_c_36gf": (167.80, 35.03, 36.7),
}


# Zhou et al. 2021, DeepViT: parameters and multiply-adds by the authors' code, for 1000 classes.
DEEPVIT = {
    "deepvit_16b": (24_426_664, 5.27),
    "deepvit_24b": (36_261_448, 7.88),
    "deepvit_32b": (48_096_232, 10.49),
    "deepvit_s": (27_312_632, 6.36),
    "deepvit_l": (58_883_708, 13.15),
}


def vit(**settings: object) -> ViTConfig:
    small = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2}
    return ViTConfig.model_validate(small | settings)


def counted(config: ViTConfig, num_classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds by torch's own counter, of the network itself."""
    with torch.device("meta"):
        model = config.network(num_classes).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    # torch counts the products inside attention only on the unfused path.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        assert model(images).shape == (1, num_classes)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def watched_activations(config: ViTConfig, num_classes: int) -> int:
    """Outputs of convolutions and linear layers as they pass, and of the two products inside attention."""
    total = 0

    def watch(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    with torch.device("meta"):
        model = config.network(num_classes).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(watch)
    tokens = []
    model.blocks.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    model(torch.zeros(1, 3, config.image_size, config.image_size, device="meta"))
    # Logits of every head, T x T; weights times v, T x D. A head mix is a linear layer or convolution above.
    [count] = tokens
    return total + len(model.blocks) * (config.heads * count**2 + count * config.width)


@pytest.mark.parametrize("name", PAPER)
def test_costs_are_those_of_the_papers_table(name):
    params, flops, activations = PAPER[name]
    cost = NAMED_MODELS[name].cost(1000)
    assert cost.params_m == pytest.approx(params, abs=0.01)
    assert cost.flops_g == pytest.approx(flops, abs=0.03)
    assert cost.activations_m == pytest.approx(activations, abs=0.2)


@pytest.mark.parametrize("name", DEEPVIT)
def test_deepvits_are_those_of_the_authors_code(name):
    params, flops = DEEPVIT[name]
    config = NAMED_MODELS[name]
    cost = config.cost(1000)
    assert cost.params == params
    assert cost.flops_g == pytest.approx(flops, abs=0.006)
    assert (cost.params, cost.flops) == counted(config, 1000)
    # Without re-attention: 144 weights, 12 biases and a batch norm of 12 fewer in each block that has it.
    plain = config.model_copy(update={"attention": Softmax()}).cost(1000)
    assert cost.params - plain.params == 180 * {"deepvit_s": 5, "deepvit_l": 12}.get(name, config.depth)


@pytest.mark.parametrize("name", PAPER)
def test_closed_forms_are_what_torch_counts_for_the_papers_models(name):
    config = NAMED_MODELS[name]
    cost = config.cost(1000)
    assert (cost.params, cost.flops) == counted(config, 1000)
    assert cost.activations == watched_activations(config, 1000)


@pytest.mark.parametrize(
    "settings",
    [
        *({"image_size": 32, "patch_size": 16, "stem": word} for word in STEMS),
        *({"stem": word} for word in STEMS if word not in ("s1", "s2", "s3", "s4")),
        {"patch_size": 4, "stem": "overlap", "freeze_stem": True},
        {"stem": {"channels": [4, 8], "projection": 2, "patch_norm": True, "projection_kernel": 3}},
        {"stem": {"channels": [4, 8], "strides": [2, 2], "projection": 2}},
        {"stem": {"channels": [4, 8, 16], "norm": "layer"}},
        {"stem": {"channels": [4, 8, 16], "norm": "none", "activation": "none"}},
        {"stem": {"channels": [4, 8, 16], "replaces_blocks": 0}},
        {"stem": {"projection": 8, "replaces_blocks": 0}},
        {"image_size": 40, "patch_size": 8, "stem": "conv", "mlp_ratio": 2.9},
        {
            "stem": {
                "channels": [4, 8],
                "kernels": [7, 3],
                "strides": [2, 1],
                "paddings": [3, 1],
                "projection": 4,
            }
        },
        {"attention": "talking_heads"},
        {"attention": "reattention", "heads": 4},
        {"attention": {"name": "reattention", "norm": "layer", "blocks": [2, 9]}, "depth": 4, "stem": "conv"},
        {"attention": {"name": "reattention", "norm": "none", "blocks": [1, 1]}},
        {"image_size": 14, "patch_size": 7},
        {"image_size": 36, "patch_size": 4, "stem": "conv", "width": 12, "heads": 3, "depth": 5},
        {"image_size": 6, "patch_size": 2, "stem": "conv"},
    ],
    ids=repr,
)
def test_closed_forms_are_what_torch_counts_for_odd_shapes(settings):
    config = vit(**settings)
    cost = config.cost(7)
    assert (cost.params, cost.flops) == counted(config, 7)
    assert cost.activations == watched_activations(config, 7)


@examples(max_examples=15)
@given(
    patches=st.integers(1, 5),
    patch_size=st.sampled_from([1, 2, 3, 4, 8]),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([4, 8]),
    depth=st.integers(2, 4),
    mlp_ratio=st.sampled_from([0.5, 1, 2.7, 4]),
    conv=st.booleans(),
    num_classes=st.integers(1, 9),
)
def test_closed_forms_are_what_torch_counts_for_any_shape(
    patches, patch_size, heads, head_width, depth, mlp_ratio, conv, num_classes
):
    assume(not conv or patch_size in (2, 4, 8))
    config = ViTConfig(
        image_size=patches * patch_size,
        patch_size=patch_size,
        width=heads * head_width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        stem="conv" if conv else "patchify",
    )
    cost = config.cost(num_classes)
    assert (cost.params, cost.flops) == counted(config, num_classes)
    assert cost.activations == watched_activations(config, num_classes)


def block_mflops_with_biases(config: ViTConfig) -> float:
    """The authors' code also counts the adding of biases, which torch and we do not."""
    biases = config.num_tokens * (5 * config.width + config.hidden)
    return (config.block_cost().flops + biases) / 1e6


@pytest.mark.parametrize(
    ("name", "stem_mflops", "block_mflops", "stem_params_m"),
    [
        # The arithmetic on the paper's section 3: convolutions at 224 pixels.
        ("vit_p_1gf", 29, 88, 0.15),
        ("vit_p_4gf", 58, 321, 0.30),
        ("vit_p_18gf", 116, 1455, 0.59),
        ("vit_p_36gf", 154, 2560, 0.79),
        ("vit_c_1gf", 113, 88, 0.26),
        ("vit_c_4gf", 435, 321, 1.02),
        ("vit_c_18gf", 1717, 1455, 2.68),
        ("vit_c_36gf", 1743, 2560, 2.82),
    ],
)
def test_the_stem_costs_about_as_much_as_the_block_it_replaces(
    name, stem_mflops, block_mflops, stem_params_m
):
    config = NAMED_MODELS[name]
    stem = config.layers.cost(224, config.width)
    assert stem.flops / 1e6 == pytest.approx(stem_mflops, abs=0.5)
    assert stem.params_m == pytest.approx(stem_params_m, abs=0.005)
    assert block_mflops_with_biases(config) == pytest.approx(block_mflops, abs=0.5)


@pytest.mark.parametrize(
    ("word", "mflops"), [("patchify", 58), ("conv", 435), ("s1", 422), ("s2", 422), ("s3", 458), ("s4", 407)]
)
def test_stems_of_the_ablation_cost_what_its_table_says(word, mflops):
    stem = STEMS[word](384, 16)
    assert stem.patch_size == 16
    assert stem.cost(224, 384).flops / 1e6 == pytest.approx(mflops, abs=0.6)


def test_the_deep_and_the_largest_models_have_the_papers_shapes():
    # Appendix B: 48 blocks of ViT_P-4GF, 47 and the stem of ViT_C-4GF; 15.5 G and 71 to 72 M.
    for letter, blocks in (("p", 48), ("c", 47)):
        config = NAMED_MODELS[f"vit_{letter}_16gf"]
        assert config.num_blocks == blocks
        assert config.cost(1000).flops_g == pytest.approx(15.5, abs=0.1)
        assert 70.5 < config.cost(1000).params_m < 72.5
    # Appendix C and the arithmetic on it: a block and the stem in millions of multiply-adds.
    config = NAMED_MODELS["vit_c_72gf"]
    assert (config.width, config.heads, config.depth, config.mlp_ratio) == (1152, 18, 22, 4)
    assert block_mflops_with_biases(config) == pytest.approx(3229, abs=0.5)
    assert config.layers.cost(224, 1152).flops / 1e6 == pytest.approx(1756, abs=0.5)


@pytest.mark.parametrize(
    ("classes", "image_size", "patch_size", "channels", "strides", "p_total", "c_total", "stem"),
    [
        (10, 32, 4, (96, 192), (2, 2), (309, 4.48), (296, 4.30), 13.7),
        (10, 32, 4, (96, 96, 192), (2, 1, 2), (309, 4.48), (317, 4.39), 34.9),
        (200, 64, 8, (48, 96, 192), (2, 2, 2), (311, 4.54), (307, 4.38), 24.9),
        (100, 128, 16, (24, 48, 96, 192), (2, 2, 2, 2), (318, 4.63), (319, 4.37), 36.9),
    ],
)
def test_scaled_down_pairs_keep_the_parity_of_the_paper(
    classes, image_size, patch_size, channels, strides, p_total, c_total, stem
):
    shape = {"size": "1gf", "image_size": image_size, "patch_size": patch_size}
    patchify = ViTConfig.model_validate(shape)
    conv = ViTConfig.model_validate(shape | {"stem": {"channels": channels, "strides": strides}})
    adding = 64 * 192 / 1e6
    assert conv.layers.cost(image_size, 192).flops / 1e6 + adding == pytest.approx(stem, abs=0.051)
    assert block_mflops_with_biases(conv) == pytest.approx(25.7, abs=0.06)
    assert conv.num_blocks == patchify.num_blocks - 1
    assert conv.num_tokens == patchify.num_tokens == 65
    for config, (mflops, params_m) in ((patchify, p_total), (conv, c_total)):
        cost = config.cost(classes)
        adding = config.num_blocks * (block_mflops_with_biases(config) - config.block_cost().flops / 1e6)
        assert cost.flops / 1e6 + adding == pytest.approx(mflops, abs=0.55)
        assert cost.params_m == pytest.approx(params_m, abs=0.006)
    if all(stride == 2 for stride in strides):
        assert conv_stem(192, patch_size).channels == channels


def test_the_conv_stem_is_convolution_norm_relu_and_one_bare_convolution():
    model = NAMED_MODELS["vit_c_1gf"].network(10)
    *layers, projection = model.stem
    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4
    convs = layers[::3]
    assert [conv.out_channels for conv in convs] == [24, 48, 96, 192]
    for conv in convs:
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
        assert conv.bias is None
    assert isinstance(projection, nn.Conv2d)
    assert (projection.kernel_size, projection.stride, projection.padding) == ((1, 1), (1, 1), (0, 0))
    assert projection.bias is not None
    assert len(model.blocks) == 11


def test_the_large_conv_stem_is_the_papers_fixed_one():
    for width in (768, 1024, 1152):
        stem = conv_stem(width, 16)
        assert stem.channels == (64, 128, 128, 256, 256, 512)
        assert stem.strides == (2, 2, 1, 2, 1, 2)


def test_the_patchify_stem_is_one_bare_convolution():
    model = NAMED_MODELS["vit_p_1gf"].network(10)
    [projection] = model.stem
    assert (projection.kernel_size, projection.stride) == ((16, 16), (16, 16))
    assert projection.bias is not None
    assert len(model.blocks) == 12


# --- the other stems, written out by hand -------------------------------------------------------------

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=torch.float64).sin().mul(9).sin().view(2, 3, 32, 32)


def stem_of(word: str, patch_size: int = 16) -> tuple[nn.Sequential, list[torch.Tensor]]:
    """A stem in double precision, in training mode, all of its numbers random, and those in their order."""
    torch.manual_seed(0)
    stem = build_stem(STEMS[word](16, patch_size), 16).double()
    for parameter in stem.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stem, [p.detach() for p in stem.parameters()]


def patches_of(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, patches down, patches right, 3 side side), cut out one by one."""
    rows = range(0, images.shape[2], side)
    cut = [[images[:, :, y : y + side, x : x + side].flatten(1) for x in rows] for y in rows]
    return torch.stack([torch.stack(row, 1) for row in cut], 1)


def by_hand_bn_relu(w, b, gain, shift):
    x = patches_of(IMAGES, 16) @ w.flatten(1).T + b
    x = (x - x.mean((0, 1, 2))) / (x.var((0, 1, 2), correction=0) + 1e-5).sqrt()
    return (x * gain + shift).clamp(min=0)


def by_hand_ln(w, b, gain, shift):
    x = patches_of(IMAGES, 16) @ w.flatten(1).T + b
    return (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * gain + shift


def by_hand_dual(gain, shift, w, b, last_gain, last_shift):
    # Kumar et al. 2023, section 3: norm over the pixels of a patch, linear layer, norm over the width.
    x = layer_norm(patches_of(IMAGES, 16), (768,), gain, shift, 1e-6)
    return layer_norm(x @ w.flatten(1).T + b, (16,), last_gain, last_shift, 1e-6)


def by_hand_overlap(w, b):
    # Every window of 31 pixels, 16 apart, in an image with 15 black ones around it.
    padded = pad(IMAGES, (15,) * 4)
    windows = [[padded[:, :, y : y + 31, x : x + 31].flatten(1) for x in (0, 16)] for y in (0, 16)]
    return torch.stack([torch.stack(row, 1) for row in windows], 1) @ w.flatten(1).T + b


def by_hand_conv_ln(*weights):
    x = IMAGES
    for w, gain, shift in zip(weights[0:12:3], weights[1:12:3], weights[2:12:3], strict=True):
        x = conv2d(x, w, stride=2, padding=1).movedim(1, -1)
        x = relu(layer_norm(x, x.shape[-1:], gain, shift, 1e-6)).movedim(-1, 1)
    return conv2d(x, *weights[12:]).movedim(1, -1)


def by_hand_conv_bare(*weights):
    # Without anything between them the convolutions are one linear map: the images' sum goes to the
    # sum of what they go to, up to the share of the biases.
    x = IMAGES
    for w, b in zip(weights[0:8:2], weights[1:8:2], strict=True):
        x = conv2d(x, w, b, stride=2, padding=1)
    return conv2d(x, *weights[8:]).movedim(1, -1)


def by_hand_hmlp(*weights):
    # Touvron et al. 2022, section 5 and code: 4x4 patches, twice four of them into one, GELU between.
    x = IMAGES
    for at, side in ((0, 4), (3, 2)):
        w, gain, shift = weights[at : at + 3]
        x = (patches_of(x, side) @ w.flatten(1).T).movedim(-1, 1)
        x = gelu(batch_norm(x, None, None, gain, shift, training=True))
    w, b, gain, shift = weights[6:]
    x = (patches_of(x, 2) @ w.flatten(1).T + b).movedim(-1, 1)
    return batch_norm(x, None, None, gain, shift, training=True).movedim(1, -1)


def by_hand_hybrid(*weights):
    x = IMAGES
    for at, (stride, padding) in ((0, (2, 3)), (3, (1, 1))):
        w, gain, shift = weights[at : at + 3]
        x = relu(batch_norm(conv2d(x, w, None, stride, padding), None, None, gain, shift, training=True))
    w, b = weights[6:]
    return patches_of(x, 8) @ w.flatten(1).T + b


def by_hand_s2(*weights):
    x = IMAGES
    for index, (kernel, stride) in enumerate(((3, 2), (3, 2), (3, 1), (4, 4))):
        w, gain, shift = weights[3 * index : 3 * index + 3]
        assert w.shape[-1] == kernel
        x = conv2d(x, w, stride=stride, padding=1 if kernel == 3 else 0)
        x = relu(batch_norm(x, None, None, gain, shift, training=True))
    return conv2d(x, *weights[12:]).movedim(1, -1)


@pytest.mark.parametrize(
    ("word", "by_hand"),
    [
        ("patchify_bn_relu", by_hand_bn_relu),
        ("patchify_ln", by_hand_ln),
        ("dual_patchnorm", by_hand_dual),
        ("overlap", by_hand_overlap),
        ("conv_ln", by_hand_conv_ln),
        ("conv_bare", by_hand_conv_bare),
        ("hmlp", by_hand_hmlp),
        ("hybrid", by_hand_hybrid),
        ("s2", by_hand_s2),
    ],
)
def test_a_stem_computes_what_it_does_written_out_by_hand(word, by_hand):
    stem, weights = stem_of(word)
    features = stem(IMAGES).movedim(1, -1)
    assert features.shape == (2, 2, 2, 16)
    # Both sides are double precision sums of at most a few thousand numbers of order one.
    assert torch.allclose(features, by_hand(*weights), rtol=1e-9, atol=1e-9)


def test_every_word_for_a_stem_has_its_stem():
    assert set(STEMS) == set(get_args(StemWord))
    # What differs in name differs in kind: no two words stand for one stem.
    stems = [make(64, 16) for make in STEMS.values()]
    assert len(set(stems)) == len(stems)


def test_overlapping_patches_are_those_of_pvt_v2():
    # Its first stage: kernel 7, stride 4, padding 3.
    stem, [weight, bias] = stem_of("overlap", 4)
    theirs = OverlapPatchEmbed(patch_size=7, stride=4, embed_dim=16).double()
    theirs.proj.load_state_dict({"weight": weight, "bias": bias})
    theirs.norm = nn.Identity()
    assert torch.allclose(stem(IMAGES).movedim(1, -1), theirs(IMAGES))


@pytest.mark.parametrize("word", sorted(STEMS))
def test_which_pixels_a_token_sees(word):
    """Stems of patches keep them apart, as masked pretraining needs; convolutions of 3 look past the edge."""
    stem, _ = stem_of(word)
    stem.eval()
    images = IMAGES.clone()
    # The last column of pixels of the left patches.
    images[:, :, :, 15] = IMAGES[:, :, :, 15] + 1
    right_changed = not torch.equal(stem(images)[..., 1], stem(IMAGES)[..., 1])
    assert not torch.equal(stem(images)[..., 0], stem(IMAGES)[..., 0])
    apart = {"patchify", "patchify_bn_relu", "patchify_ln", "dual_patchnorm", "hmlp"}
    assert right_changed == (word not in apart)


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_a_frozen_stem_keeps_its_random_weights_and_no_optimizer_sees_it(stem):
    config = vit(stem=stem, freeze_stem=True)
    torch.manual_seed(0)
    model = config.network(3)
    torch.manual_seed(0)
    free = vit(stem=stem).network(3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # The same draw as of a free one.
    assert all(torch.equal(p, before[name]) for name, p in free.named_parameters())
    optimizer = SGD(lr=0.1, weight_decay=0.1).build(model, 4, ())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("stem.")}
    for _ in range(2):
        nn.functional.cross_entropy(model(IMAGES.float()), torch.tensor([0, 1])).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("stem."), name
    assert config.cost(3) == vit(stem=stem).cost(3)


def test_the_answer_is_read_from_the_class_token_after_the_last_norm():
    model = vit(image_size=16).network(3).eval()
    nn.init.normal_(model.head.weight)
    seen = {}
    model.norm.register_forward_hook(lambda module, inputs, output: seen.update(shape=output.shape))
    images = torch.randn(2, 3, 16, 16)
    before = model(images)
    assert seen["shape"] == (2, 16)
    with torch.no_grad():
        model.class_token += torch.randn_like(model.class_token)
    assert not torch.allclose(before, model(images))


def test_norms_have_the_epsilon_of_the_authors_configs():
    norms = [m for m in vit().network(3).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_training_starts_at_the_loss_of_guessing(stem):
    # The head is zero, so all logits are.
    logits = vit(stem=stem).network(7)(torch.randn(3, 3, 32, 32))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).item()
    assert loss == pytest.approx(math.log(7), abs=1e-6)


def std_is(weights: torch.Tensor, std: float) -> None:
    # The sample standard deviation of n normal numbers has standard error std / sqrt(2 n); five of them
    # are passed by chance once in 1.7 million draws.
    assert weights.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * weights.numel()))


def test_the_patchify_stem_starts_with_fan_in_scaling():
    torch.manual_seed(0)
    [projection] = NAMED_MODELS["vit_p_1gf"].network(10).stem
    # Truncation at +-2, which is 55 standard deviations here, changes nothing.
    std_is(projection.weight, math.sqrt(1 / (3 * 16 * 16)))
    assert not projection.bias.any()


def test_positions_start_small_and_the_class_token_at_zero():
    torch.manual_seed(0)
    model = NAMED_MODELS["vit_p_1gf"].network(10)
    std_is(model.position, 0.02)
    assert not model.class_token.any()
    assert not model.head.weight.any()
    assert not model.head.bias.any()


@pytest.mark.parametrize(
    ("init", "conv_std", "projection_std"),
    [
        # PyTorch's default is uniform between +-1 / sqrt(fan_in), of standard deviation 1 / sqrt(3 fan_in).
        ("pycls_2021", math.sqrt(1 / (3 * 96 * 9)), math.sqrt(2 / 192)),
        ("pycls_2022", math.sqrt(2 / 192), math.sqrt(1 / 192)),
        ("torchvision", math.sqrt(1 / (3 * 96 * 9)), math.sqrt(2 / 192)),
    ],
)
def test_each_init_option_scales_the_conv_stem_as_its_code_does(init, conv_std, projection_std):
    torch.manual_seed(0)
    model = NAMED_MODELS["vit_c_1gf"].model_copy(update={"init": init}).network(10)
    last_conv, projection = model.stem[9], model.stem[12]
    std_is(last_conv.weight, conv_std)
    std_is(projection.weight, projection_std)
    assert not projection.bias.any()


def test_attention_and_mlp_start_with_xavier_uniform():
    torch.manual_seed(0)
    block = NAMED_MODELS["vit_p_1gf"].network(10).blocks[0]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.999 * bound < weight.abs().max().item() <= bound
        std_is(weight, bound / math.sqrt(3))
    assert not block.attn.qkv.bias.any()
    assert 0 < block.mlp.fc1.bias.abs().max().item() < 1e-5


def test_drop_path_grows_linearly_with_depth():
    blocks = vit(depth=5, drop_path=0.4).network(3).blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_size_fills_only_what_is_not_given():
    config = ViTConfig(size="4gf", width=96, image_size=32, patch_size=8)
    assert (config.width, config.depth, config.heads, config.mlp_ratio) == (96, 12, 6, 3)
    assert set(SIZES) == set(get_args(get_args(ViTConfig.model_fields["size"].annotation)[0]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 30}, ["patch_size must divide image_size", "patch_size=8", "image_size=30"]),
        ({"heads": 3}, ["heads must divide width", "heads=3", "width=16"]),
        ({"stem": {"channels": [8, 16]}}, ["strides must multiply to patch_size", "[2, 2]", "patch_size=8"]),
        (
            {"stem": {"channels": [8], "kernels": [3], "strides": [8, 1]}},
            ["must be equally long", "1, 1, 2"],
        ),
        ({"stem": {"channels": [8, 0, 8]}}, ["must all be 1 or more"]),
        ({"patch_size": 12, "image_size": 36, "stem": "conv"}, ["power of two", "12"]),
        ({"width": 18, "stem": "conv"}, ["width 18 is not divisible by 4", "patch_size of 8"]),
        ({"depth": 1, "stem": "conv"}, ["depth must exceed the 1 block(s)"]),
        (
            {"stem": {"channels": [8, 8, 8], "kernels": [5, 5, 5]}},
            ["turns 32 pixels into 1, not 4", "[5, 5, 5]", "[2, 2, 2]"],
        ),
        ({"stem": {"projection": 8, "projection_kernel": 16}}, ["must be odd", "got 16 and 8"]),
        ({"stem": {"projection": 8, "projection_kernel": 7}}, ["above projection", "got 7 and 8"]),
        ({"stem": "s3"}, ["s1 to s4 are for a patch_size of 16, got 8"]),
        ({"stem": "hmlp", "patch_size": 4}, ["power of two from 8 on, got 4"]),
        ({"stem": "hmlp", "width": 18}, ["width divisible by 4, got 18"]),
        ({"stem": "hybrid", "patch_size": 1}, ["an even patch_size", "got 1 and 16"]),
        (
            {"stem": {"channels": [8], "kernels": [3], "strides": [8], "paddings": [2]}},
            ["0 to half of their kernels", "[2]", "[3]"],
        ),
        ({"attention": "reatention"}, ["'softmax', 'talking_heads', 'reattention'"]),
        ({"attention": {"name": "reattention", "blocks": [3, 4]}}, ["names no block of 2, got [3, 4]"]),
        ({"attention": {"name": "talking_heads", "blocks": [2, 1]}}, ["names no block of 2, got [2, 1]"]),
        ({"attention": {"name": "softmax", "blocks": "all"}}, ["Extra inputs"]),
        ({"attention": "reattention", "recompute": True}, ["batch norm twice", "layer or none"]),
        ({"width": 0}, ["greater than 0"]),
        ({"drop_path": 1.0}, ["less than 1"]),
        ({"init": "mine"}, ["pycls_2021"]),
        ({"nonsense": 1}, ["nonsense"]),
    ],
    ids=repr,
)
def test_bad_shapes_are_refused_with_the_rule_and_the_values(settings, words):
    with pytest.raises(ValidationError) as caught:
        vit(**settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_all_that_is_wrong_with_a_shape_is_said_at_once():
    with pytest.raises(ValidationError, match=r"image_size=30.*heads=3"):
        vit(image_size=30, heads=3)


# --- attention ----------------------------------------------------------------------------------------


def mixes(**settings):
    """Which blocks have what between softmax and values."""
    model = vit(depth=6, **settings).network(3)
    return [type(block.attn.maps) for block in model.blocks]


def test_maps_are_mixed_in_the_blocks_that_are_named():
    none = type(None)
    assert mixes() == [none] * 6
    assert mixes(attention="talking_heads") == [HeadMix] * 6
    assert mixes(attention={"name": "reattention", "blocks": [4, 5]}) == [none] * 3 + [Reattend] * 2 + [none]
    # A conv stem replaces one of the six.
    assert (
        mixes(attention={"name": "reattention", "blocks": [4, 6]}, stem="conv") == [none] * 3 + [Reattend] * 2
    )
    sizes = {name: NAMED_MODELS[name].mixing_blocks for name in ("deepvit_16b", "deepvit_s", "deepvit_l")}
    assert sizes == {"deepvit_16b": range(16), "deepvit_s": range(11, 16), "deepvit_l": range(20, 32)}


def test_reattention_that_begins_as_the_identity_begins_as_plain_attention():
    images = torch.rand(2, 3, 32, 32)
    outputs = []
    for attention in ("softmax", {"name": "reattention", "norm": "none", "init": "identity"}):
        torch.manual_seed(0)
        model = vit(attention=attention).network(3)
        torch.manual_seed(1)
        for parameter in (model.head.weight, model.head.bias):
            nn.init.normal_(parameter)
        outputs.append(model(images))
    assert torch.allclose(*outputs, atol=2e-6)


def test_a_word_and_its_name_are_one_attention():
    assert vit(attention="reattention") == vit(attention={"name": "reattention"})
    assert vit(attention="softmax") == vit()
    assert NAMED_MODELS["deepvit_s"].attention.scale_maps
    [block] = vit(depth=1, attention={"name": "reattention", "scale_maps": True}).network(3).blocks
    # Heads of 16 / 2 channels.
    assert block.attn.maps.scale == pytest.approx(8**-0.5)


def test_a_model_is_computed_again_unless_that_would_change_it():
    assert vit().recomputing() == vit(recompute=True)
    assert vit(recompute=True).recomputing() is None
    assert vit(attention="reattention").recomputing() is None
    layer = {"name": "reattention", "norm": "layer"}
    assert vit(attention=layer).recomputing() == vit(attention=layer, recompute=True)
    assert NAMED_MODELS["resnet_50"].recomputing() is None


def test_depths_of_deepvit_are_those_of_plain_vits_too():
    plain = ViTConfig.model_validate({"size": "deepvit_24b", "attention": "softmax"})
    assert (plain.depth, plain.heads, plain.width, list(plain.mixing_blocks)) == (24, 12, 384, [])
