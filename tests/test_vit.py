import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import NAMED_MODELS
from trainables.vit import SIZES, Stem, ViTConfig, conv_stem

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


def vit(**settings: object) -> ViTConfig:
    small = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2}
    return ViTConfig.model_validate(small | settings)


def counted(config: ViTConfig, num_classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds by torch's own counter, of the network itself."""
    with torch.device("meta"):
        model = config.build(num_classes).eval()
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
        model = config.build(num_classes).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(watch)
    tokens = []
    model.blocks.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    model(torch.zeros(1, 3, config.image_size, config.image_size, device="meta"))
    # Logits of every head, T x T; weights times v, T x D.
    [count] = tokens
    return total + len(model.blocks) * (config.heads * count**2 + count * config.width)


@pytest.mark.parametrize("name", PAPER)
def test_costs_are_those_of_the_papers_table(name):
    params, flops, activations = PAPER[name]
    cost = NAMED_MODELS[name].cost(1000)
    assert cost.params_m == pytest.approx(params, abs=0.01)
    assert cost.flops_g == pytest.approx(flops, abs=0.03)
    assert cost.activations_m == pytest.approx(activations, abs=0.2)


@pytest.mark.parametrize("name", PAPER)
def test_closed_forms_are_what_torch_counts_for_the_papers_models(name):
    config = NAMED_MODELS[name]
    cost = config.cost(1000)
    assert (cost.params, cost.flops) == counted(config, 1000)
    assert cost.activations == watched_activations(config, 1000)


S1 = Stem(channels=(52, 104, 208, 416), kernels=(3, 3, 3, 2), strides=(2, 2, 2, 2))
S2 = Stem(channels=(32, 64, 128, 256), kernels=(3, 3, 3, 4), strides=(2, 2, 1, 4))
S3 = Stem(channels=(17, 34, 68, 136), kernels=(3, 3, 3, 8), strides=(2, 1, 1, 8))
S4 = Stem(channels=(8, 16, 32, 64), kernels=(3, 3, 3, 16), strides=(1, 1, 1, 16))


@pytest.mark.parametrize(
    "settings",
    [
        *({"image_size": 32, "patch_size": 16, "stem": stem} for stem in (S1, S2, S3, S4)),
        {"stem": {"channels": [4, 8], "strides": [2, 2], "projection": 2}},
        {"stem": {"channels": [4, 8, 16], "norm": "layer"}},
        {"stem": {"channels": [4, 8, 16], "norm": "none", "activation": "none"}},
        {"stem": {"channels": [4, 8, 16], "replaces_blocks": 0}},
        {"stem": {"projection": 8, "replaces_blocks": 0}},
        {"image_size": 40, "patch_size": 8, "stem": "conv", "mlp_ratio": 2.9},
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
    ("stem", "mflops"), [(conv_stem(384, 16), 435), (S1, 422), (S2, 422), (S3, 458), (S4, 407)]
)
def test_stems_of_the_ablation_cost_what_its_table_says(stem, mflops):
    assert stem.patch_size == 16
    assert stem.cost(224, 384).flops / 1e6 == pytest.approx(mflops, abs=0.6)


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
    model = NAMED_MODELS["vit_c_1gf"].build(10)
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
    model = NAMED_MODELS["vit_p_1gf"].build(10)
    [projection] = model.stem
    assert (projection.kernel_size, projection.stride) == ((16, 16), (16, 16))
    assert projection.bias is not None
    assert len(model.blocks) == 12


def test_the_answer_is_read_from_the_class_token_after_the_last_norm():
    model = vit(image_size=16).build(3).eval()
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
    norms = [m for m in vit().build(3).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_training_starts_at_the_loss_of_guessing(stem):
    # The head is zero, so all logits are.
    logits = vit(stem=stem).build(7)(torch.randn(3, 3, 32, 32))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).item()
    assert loss == pytest.approx(math.log(7), abs=1e-6)


def std_is(weights: torch.Tensor, std: float) -> None:
    # The sample standard deviation of n normal numbers has standard error std / sqrt(2 n); five of them
    # are passed by chance once in 1.7 million draws.
    assert weights.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * weights.numel()))


def test_the_patchify_stem_starts_with_fan_in_scaling():
    torch.manual_seed(0)
    [projection] = NAMED_MODELS["vit_p_1gf"].build(10).stem
    # Truncation at +-2, which is 55 standard deviations here, changes nothing.
    std_is(projection.weight, math.sqrt(1 / (3 * 16 * 16)))
    assert not projection.bias.any()


def test_positions_start_small_and_the_class_token_at_zero():
    torch.manual_seed(0)
    model = NAMED_MODELS["vit_p_1gf"].build(10)
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
    model = NAMED_MODELS["vit_c_1gf"].model_copy(update={"init": init}).build(10)
    last_conv, projection = model.stem[9], model.stem[12]
    std_is(last_conv.weight, conv_std)
    std_is(projection.weight, projection_std)
    assert not projection.bias.any()


def test_attention_and_mlp_start_with_xavier_uniform():
    torch.manual_seed(0)
    block = NAMED_MODELS["vit_p_1gf"].build(10).blocks[0]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.999 * bound < weight.abs().max().item() <= bound
        std_is(weight, bound / math.sqrt(3))
    assert not block.attn.qkv.bias.any()
    assert 0 < block.mlp.fc1.bias.abs().max().item() < 1e-5


def test_drop_path_grows_linearly_with_depth():
    blocks = vit(depth=5, drop_path=0.4).build(3).blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_size_fills_only_what_is_not_given():
    config = ViTConfig(size="4gf", width=96, image_size=32, patch_size=8)
    assert (config.width, config.depth, config.heads, config.mlp_ratio) == (96, 12, 6, 3)
    assert set(SIZES) == {"nano", "1gf", "4gf", "18gf", "36gf"}


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
