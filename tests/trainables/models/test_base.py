import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from trainables.config import NAMED_MODELS
from trainables.models.base import Arguments, CountedFamily, ModelFamily
from trainables.models.counting import count_cost
from trainables.models.vit import ViTConfig
from trainables.optim import AdamW, MuonAdamW
from trainables.training.transfer import take_over

#: The rules that stood in the optimizer and in the transfer until the families said it themselves: by the
#: first part of a parameter's name, and by a convolution of 3 channels or of 1.
OUTER = ("class_token", "position", "head", "fc", "classifier")
HEADS = ("head", "fc", "classifier")


def was_inner(name: str, parameter: nn.Parameter) -> bool:
    is_thin = parameter.ndim == 4 and parameter.shape[1] in (1, 3)
    return parameter.ndim >= 2 and not is_thin and name.split(".")[0] not in OUTER


FAMILIES = ["vit_p_1gf", "vit_c_1gf", "regnety_1gf", "regnetz_4gf", "efficientnet_b0", "resnet_50"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return NAMED_MODELS[request.param]


def on_meta(family: ModelFamily, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return family.network(num_classes)


def test_muon_treats_the_parameters_as_by_the_names_they_have(family):
    network = on_meta(family, 10)
    optimizer = MuonAdamW(lr=1, weight_decay=0.1).build(network, 64, family.outer_names(network))
    held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        group = held[id(parameter)]
        assert bool(group.get("use_muon")) == was_inner(name, parameter), name
        assert (group["weight_decay"] > 0) == (parameter.ndim > 1), name


def test_another_number_of_classes_resets_what_the_names_say(family):
    old, network = on_meta(family, 7), on_meta(family, 10)
    marks = {name: torch.full(tensor.shape, 2.0) for name, tensor in old.state_dict().items()}
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(1)
    take_over(network, marks, "all", family.head_names(network))
    for name, tensor in network.state_dict().items():
        assert bool((tensor == 1).all()) == (name.split(".")[0] in HEADS), name


class Described(ModelFamily):
    def network(self, num_classes: int) -> nn.Module:
        network = nn.Module()
        network.stem, network.inside = nn.Conv2d(8, 8, 2), nn.Linear(8, 8)
        network.one, network.other = nn.Linear(8, num_classes), nn.Linear(8, num_classes)
        network.table, network.query = nn.Embedding(4, 8), nn.Parameter(torch.ones(2, 8))
        network.pretrained_cfg = {"first_conv": "stem"}
        network.no_weight_decay = lambda: {"query"}
        return network


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_head_of_a_family_that_does_not_name_it_is_what_follows_the_classes(num_classes):
    family = Described()
    network = family.network(num_classes)
    head = {"one.weight", "one.bias", "other.weight", "other.bias"}
    assert family.head_names(network) == head
    assert family.outer_names(network) == head | {"stem.weight", "stem.bias", "table.weight", "query"}


def test_what_a_network_exempts_from_decay_does_not_decay():
    network = Described().network(5)
    groups = AdamW(lr=1, weight_decay=0.1).build(network, 64, ()).param_groups
    free = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert id(network.query) in free
    assert id(network.table.weight) not in free


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_counting_finds_the_cost_that_a_transformer_has_in_closed_form(stem):
    config = ViTConfig(
        image_size=32, patch_size=8, width=16, depth=3, heads=2, mlp_ratio=2, stem=stem, drop_path=0.1
    )
    network = on_meta(config, 7)
    assert count_cost(network, config.input_shape) == config.cost(7)
    assert network.training


class Picky(CountedFamily):
    def network(self, num_classes: int) -> nn.Module:
        if num_classes > 2:
            raise RuntimeError("too many\nand more")
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def test_a_network_that_cannot_be_counted_says_at_which_step_it_failed_and_why():
    assert Picky(image_size=8).cost(2).params == 3 * 8 * 8 * 2 + 2
    with pytest.raises(ValueError, match=r"^cannot be built: RuntimeError: too many$"):
        Picky(image_size=8).cost(3)
    with pytest.raises(ValueError, match=r"^takes no images of 9 pixels: RuntimeError: "):
        Picky(image_size=9).cost(2)


# --- arguments of others ------------------------------------------------------------------------------


def arguments(**values):
    return TypeAdapter(Arguments).validate_python(values)


def test_arguments_are_known_by_how_they_are_written():
    one = arguments(depths=[1, 2], bias=True, more={"rate": 0.1})
    assert one == arguments(more={"rate": 0.1}, depths=[1, 2], bias=True)
    assert hash(one) == hash(arguments(bias=True, more={"rate": 0.1}, depths=[1, 2]))
    assert one != arguments(depths=[1, 2], bias=1, more={"rate": 0.1})
    assert arguments(rate=1) != arguments(rate=1.0)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_arguments_that_no_file_can_hold_are_refused(value):
    with pytest.raises(ValidationError, match="must be numbers, texts, true, false, null"):
        arguments(rate=value)
