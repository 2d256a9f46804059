import math

import pytest
import torch
from pydantic import ValidationError

from trainables.config import NAMED_MODELS
from trainables.models.cnn import EfficientNetConfig, RegNetYConfig, RegNetZConfig, ResNetConfig

# Xiao et al. 2021, table 2: flops G, params M, activations M, all rounded to one digit after the point.
# All but ResNet at training resolutions of their own.
PAPER = {
    "resnet_50": (4.1, 25.6, 11.3),
    "resnet_101": (7.8, 44.5, 16.4),
    "resnet_152": (11.5, 60.2, 22.8),
    "resnet_200": (15.0, 64.7, 32.3),
    "regnety_1gf": (1.0, 9.6, 6.2),
    "regnety_4gf": (4.1, 22.4, 14.5),
    "regnety_16gf": (15.5, 72.3, 30.7),
    "regnety_32gf": (31.1, 128.6, 46.2),
    "regnetz_4gf": (4.0, 28.1, 24.3),
    "efficientnet_b2": (1.0, 9.1, 13.8),
    "efficientnet_b4": (4.4, 19.3, 49.5),
    "efficientnet_b5": (10.3, 30.4, 98.9),
}


@pytest.mark.parametrize("name", PAPER)
def test_costs_are_those_of_the_papers_table(name):
    flops, params, activations = PAPER[name]
    cost = NAMED_MODELS[name].cost(1000)
    # Half a unit of the printed digit, and as much again for what the printing truncates.
    assert cost.flops_g == pytest.approx(flops, abs=0.1)
    assert cost.params_m == pytest.approx(params, abs=0.06)
    assert cost.activations_m == pytest.approx(activations, abs=0.1)


def test_regnety_4gf_has_the_stages_its_parameters_give():
    # Radosavovic et al. 2020, section 3.3: widths w0 + wa j, quantised to w0 wm^s and then to 8.
    depth, w0, wa, wm, group = 26, 88, 30.3, 2.404, 32
    exponents = [round(math.log((w0 + wa * j) / w0) / math.log(wm)) for j in range(depth)]
    widths = [round(w0 * wm**exponent / 8) * 8 for exponent in exponents]
    stages = sorted(set(widths))
    config = NAMED_MODELS["regnety_4gf"]
    assert config.depths == tuple(widths.count(width) for width in stages)
    assert config.widths == tuple(round(width / group) * group for width in stages)


def test_efficientnet_b0_costs_what_its_own_paper_says():
    # Tan and Le 2019, table 2: 5.3 M parameters, 0.39 G multiply-adds.
    cost = NAMED_MODELS["efficientnet_b0"].cost(1000)
    assert (round(cost.params_m, 1), round(cost.flops_g, 2)) == (5.3, 0.39)


def test_regnetz_4gf_has_the_stages_its_parameters_give():
    depth, w0, wa, wm = 28, 48, 14.5, 2.226
    exponents = [round(math.log((w0 + wa * j) / w0) / math.log(wm)) for j in range(depth)]
    widths = [round(w0 * wm**exponent / 8) * 8 for exponent in exponents]
    stages = sorted(set(widths))
    config = NAMED_MODELS["regnetz_4gf"]
    assert config.depths == tuple(widths.count(width) for width in stages)
    assert config.widths == tuple(stages)


def test_a_regnetz_widens_inside_its_blocks_and_ends_them_bare():
    model = RegNetZConfig(size="nano", depths=(1, 2, 3, 1)).network(5)
    stages = [getattr(model, f"s{i}") for i in (1, 2, 3, 4)]
    assert [len(list(stage.children())) for stage in stages] == [1, 2, 3, 1]
    first, second, _ = stages[2].children()
    assert (first.conv2.conv.in_channels, first.conv2.conv.groups) == (4 * 32, 4 * 32 // 8)
    # A block that changes width or stride has no shortcut; the others add their input, unchanged.
    assert first.downsample is None
    images = torch.randn(2, 32, 4, 4)
    second.eval()
    inside = second.conv3(second.se(second.conv2(second.conv1(images))))
    assert torch.allclose(second(images), images + inside, atol=1e-6)


@pytest.mark.parametrize("variant", ["b0", "b4"])
def test_an_efficientnet_takes_its_own_resolution_and_drops_nothing_out(variant):
    config = EfficientNetConfig(variant=variant)
    assert config.image_size == {"b0": 224, "b4": 380}[variant]
    assert EfficientNetConfig(variant=variant, image_size=64).image_size == 64
    with torch.device("meta"):
        model = config.network(10)
    assert model.drop_rate == 0
    # Tan and Le 2019, table 1: 16 blocks at depth 1; at 1.8 every stage rounded up.
    depths = [1, 2, 2, 3, 3, 4, 1]
    scale = {"b0": 1, "b4": 1.8}[variant]
    assert [len(stage) for stage in model.blocks] == [math.ceil(scale * depth) for depth in depths]


def test_a_regnety_has_the_blocks_it_is_given():
    model = RegNetYConfig(size="nano", depths=(1, 2, 3, 1)).network(5)
    stages = [getattr(model, f"s{i}") for i in (1, 2, 3, 4)]
    assert [len(list(stage.children())) for stage in stages] == [1, 2, 3, 1]
    block = next(stages[2].children())
    assert block.conv2.conv.groups == 64 // 16
    # A quarter of the block's input, as squeeze-and-excitation of RegNet is defined.
    assert block.se.fc1.out_channels == 32 // 4


@pytest.mark.parametrize("layers", [18, 50])
def test_a_resnet_counts_as_many_layers_as_its_name(layers):
    with torch.device("meta"):
        model = ResNetConfig(layers=layers).network(10)
    weights = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "downsample" not in name
    ]
    assert len(weights) == layers


def test_a_group_width_that_does_not_divide_is_refused_with_both():
    with pytest.raises(ValidationError, match=r"group_width must divide widths, got 24 and \[32, 64, 128\]"):
        RegNetYConfig(size="nano", group_width=24)
    with pytest.raises(ValidationError, match=r"must divide 4 x widths, got 48 and \[64, 128, 256\]"):
        RegNetZConfig(size="nano", group_width=48)
