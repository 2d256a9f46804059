import itertools
import math
import typing

import pytest
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.sweep.design import Design
from orchestrator.sweep.space import DOMAINS
from tests.support import networks
from trainables.base import SPLITS, derive_seed
from trainables.config import (
    NAMED_MODELS,
    Augment,
    DataConfig,
    Divergence,
    Ema,
    Evaluation,
    ModelConfig,
    OptimConfig,
    Seeds,
    Start,
    TrainConfig,
    faults_of,
)
from trainables.context import Context
from trainables.data.digits import Digits
from trainables.data.parquet import Parquet
from trainables.data.shifted import ShiftedSet
from trainables.identity import identity
from trainables.io.code import trusting_code
from trainables.models.cnn import EfficientNetConfig, RegNetYConfig, RegNetZConfig, ResNetConfig
from trainables.models.python_model import PythonConfig
from trainables.models.stems import STEMS, Stem
from trainables.models.timm_model import TimmConfig
from trainables.models.vit import ViTConfig
from trainables.optim import LAMB, SGD, AdamW, Lion, MuonAdamW
from trainables.presets import RECIPES, leaves, set_paths
from trainables.transforms.corruptions import Corruptions
from trainables.transforms.imagenet import Paper
from trainables.transforms.light import Light
from trainables.transforms.mixup import Mixup


def members(union) -> set[type]:
    """The classes of a union, with or without its discriminator."""
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return set(typing.get_args(union))


SHAPE = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2}


def own_network() -> PythonConfig:
    with trusting_code():
        return PythonConfig(build=f"{networks.__file__}:make", image_size=32, arguments={"width": 6})


MODELS = [
    ViTConfig(**SHAPE),
    ViTConfig(**SHAPE, stem="conv", drop_path=0.1, init="torchvision"),
    ViTConfig(**SHAPE, stem=Stem(channels=(4, 8), strides=(2, 2), projection=2, norm="layer")),
    RegNetYConfig(size="nano", drop_path=0.1),
    RegNetZConfig(size="nano", drop_path=0.1),
    EfficientNetConfig(variant="b0", image_size=32),
    ResNetConfig(layers=18, image_size=32),
    ResNetConfig(layers=50, image_size=64),
    TimmConfig(name="convnext_atto.d2_in1k", image_size=32, arguments={"drop_rate": 0.1}),
    TimmConfig(name="vit_tiny_patch16_224", image_size=32, drop_path=0.1),
    TimmConfig(name="resnet10t", image_size=32),
    own_network(),
]
OPTIMS = [
    AdamW(lr=1e-3, weight_decay=0.1, beta1=0.8),
    SGD(lr=0.1, weight_decay=1e-4, lr_batch_size=2048, lr_scaling="sqrt"),
    Lion(lr=1e-4, weight_decay=1, beta2=0.98),
    LAMB(lr=4e-3, weight_decay=0.05, eps=1e-8),
    MuonAdamW(lr=1e-3, weight_decay=0.1, nesterov=False),
]
AUGMENTS = [Light(shift=0.2, flip=0.5), Paper(auto_augment=False)]
DATA = [Digits(split_seed=3), Parquet(path="/some/where", train_limit=5, selection="final")]


def run_of(**parts) -> TrainConfig:
    settings = {"model": MODELS[0], "data": DATA[0], "optim": OPTIMS[0], "schedule": {"epochs": 2}}
    return TrainConfig(**(settings | {"batch_size": 64} | parts))


OTHERS = [
    *(domain.model_validate({word: [1, 2]}) for domain in DOMAINS for word in domain.model_fields),
    *(
        TypeAdapter(Design).validate_python(design)
        for design in (
            {"kind": "random", "points": 4},
            {"kind": "sobol", "points": 4, "scrambles": 2},
            {"kind": "latin", "points": 4},
            {"kind": "star", "cross": ["schedule.epochs"]},
            {"kind": "grid", "levels": 3},
        )
    ),
    Mixup(),
    Corruptions(kinds=("fog", "snow"), severities=(1,), images=5),
    ShiftedSet(name="v2", uri="/some/where", training_names="imagenet_wnids"),
    Start(run=run_of(), parts="stem"),
    Evaluation(corruptions=Corruptions(), shifted=(ShiftedSet(name="r", uri="s3://a/b"),)),
    Ema(),
    Divergence(),
    Seeds(),
]
ALL = [*MODELS, *OPTIMS, *AUGMENTS, *DATA, *OTHERS]


def name_of(config: BaseModel) -> str:
    return type(config).__name__


def test_the_examples_cover_every_member_of_every_union():
    covered = {type(config) for config in ALL}
    for union in (ModelConfig, DataConfig, Augment, OptimConfig, Design):
        assert members(union) <= covered
    assert set(DOMAINS) <= covered


# --- all configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_a_configuration_survives_json(config):
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_a_configuration_is_frozen_and_hashable(config):
    again = type(config).model_validate(config.model_dump())
    assert hash(again) == hash(config)
    field = next(iter(type(config).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, field, getattr(config, field))


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_a_configuration_refuses_keys_it_does_not_know(config):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        type(config).model_validate(config.model_dump() | {"nonsense": 1})


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_every_field_that_people_set_is_described(config):
    plain = ("kind", "name", "family")
    fields = {name: field for name, field in type(config).model_fields.items() if name not in plain}
    assert [name for name, field in fields.items() if not field.description] == []


@pytest.mark.parametrize(
    "parts",
    [
        *({"model": model} for model in MODELS),
        *({"data": data} for data in DATA),
        *({"augment": augment} for augment in AUGMENTS),
        *({"optim": optim} for optim in OPTIMS),
        {"recipe": "paper"},
        {"recipe": "paper", "mixup": None, "ema": None, "augment": "light"},
        {"mixup": {"mixup_alpha": 0}, "ema": {"every_steps": 1}, "clip_grad_norm": 1},
        {"schedule": {"epochs": 3, "warmup": "10%", "per": "epoch"}, "divergence": {"window": 3}},
        {"seeds": {"init": 1, "order": 2, "augment": 3}},
    ],
    ids=lambda parts: " ".join(f"{key}-{type(value).__name__}" for key, value in parts.items()),
)
def test_a_whole_run_survives_json_with_its_identity(parts):
    config = run_of(**parts)
    again = TrainConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert hash(again) == hash(config)
    assert identity(again, "data") == identity(config, "data")


# --- models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", MODELS, ids=name_of)
def test_a_model_builds_trains_and_answers_with_one_logit_per_class(config):
    model = config.network(7)
    logits = model(torch.randn(2, 3, config.image_size, config.image_size))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("config", MODELS, ids=name_of)
def test_the_cost_of_a_model_is_what_torch_counts(config):
    with torch.device("meta"):
        model = config.network(7).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(images)
    cost = config.cost(7)
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.flops == counter.get_total_flops() // 2
    assert cost.activations > 0


@pytest.mark.parametrize("config", MODELS, ids=name_of)
def test_the_head_of_a_model_is_what_follows_the_number_of_classes(config):
    with torch.device("meta"):
        one, other = config.network(7), config.network(8)
    shapes = {name: tensor.shape for name, tensor in one.state_dict().items()}
    head = {name for name, tensor in other.state_dict().items() if tensor.shape != shapes[name]}
    assert head
    assert config.head_names(one) == head
    assert head <= config.outer_names(one) <= set(shapes)


@pytest.mark.parametrize("config", MODELS, ids=name_of)
def test_initial_weights_follow_torchs_generator_and_nothing_else(config):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in config.network(7).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_every_named_model_is_the_one_its_short_form_stands_for():
    assert len(NAMED_MODELS) == 30
    for name, model in NAMED_MODELS.items():
        assert run_of(model=name).model == model
    # 6 x 2 ViT, 5 DeepViT, 4 RegNetY, 1 RegNetZ, 4 EfficientNet, 4 ResNet.
    families = {"vit_p", "vit_c", "deepvit", "regnety", "regnetz", "efficientnet", "resnet"}
    assert {name.rpartition("_")[0] for name in NAMED_MODELS} == families


@pytest.mark.parametrize("optim", OPTIMS, ids=name_of)
def test_an_optimizer_holds_every_parameter_once(optim):
    model = MODELS[1].network(7)
    optimizer = optim.build(model, 64, MODELS[1].outer_names(model))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


# --- data and augmentation ----------------------------------------------------------------------------


def test_every_data_set_tells_its_sizes_and_opens(write_parquet, png_bytes):
    images = [png_bytes([[[i, 0, 0]]]) for i in range(40)]
    path = write_parquet("set.parquet", images, [0, 1] * 20)
    configs = [Digits(), Parquet(path=str(path))]
    assert {type(config) for config in configs} == members(DataConfig)
    for config in configs:
        info, splits = config.info(), config.open()
        assert tuple(splits) == SPLITS
        assert {split: len(images) for split, images in splits.items()} == info.sizes
        for images in splits.values():
            assert images.read(0).mode == "RGB"
            assert images.labels.max() < info.num_classes == len(info.class_names)


@pytest.mark.parametrize("augment", AUGMENTS, ids=name_of)
def test_every_augmentation_gives_batches_of_the_size_asked_for(augment):
    images = Digits().open()["val"]
    pipeline = augment.pipeline(24, 0, Context())
    pixels, labels = next(pipeline.train_batches(images, 0, 32, 0))
    assert pixels.shape == (len(labels), 3, 24, 24)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64


# --- recipes, short forms, paths ----------------------------------------------------------------------


def test_the_papers_recipe_is_the_papers():
    tree = {"recipe": "paper", "model": "vit_p_4gf", "data": "digits"}
    tree["optim"] = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.24}
    config = TrainConfig.model_validate(tree)
    assert config.batch_size == 2048
    assert config.label_smoothing == 0.1
    assert (config.mixup.mixup_alpha, config.mixup.cutmix_alpha) == (0.8, 1.0)
    assert (config.augment.min_area, config.augment.flip, config.augment.pca_std) == (0.08, 0.5, 0.1)
    assert config.augment.auto_augment
    assert round(224 * config.augment.eval_resize) == 256
    assert (config.schedule.warmup, config.schedule.per) == (5, "epoch")
    assert (config.schedule.warmup_start, config.schedule.floor) == (0.1, 0.005)
    assert (config.ema.time_constant, config.ema.every_steps) == (0.078, 32)
    assert config.precise_bn_images == 8192
    assert config.clip_grad_norm is None
    assert (config.optim.beta1, config.optim.beta2) == (0.9, 0.999)
    sgd = SGD(lr=1, weight_decay=0)
    assert (sgd.momentum, sgd.nesterov) == (0.9, True)


def test_a_recipe_fills_only_what_is_not_set():
    config = run_of(recipe="paper", augment={"name": "light", "flip": 0.5}, schedule={"epochs": 3})
    assert (config.augment, config.schedule.epochs, config.batch_size) == (Light(flip=0.5), 3, 64)
    assert config.schedule.warmup == 5
    assert set(RECIPES) == {"light", "paper"}


def test_short_forms_stand_for_what_they_say():
    config = run_of(model="vit_c_1gf", data="/data/x", optim={"name": "sgd", "lr": 1, "weight_decay": 0})
    assert config.model == ViTConfig(size="1gf", stem="conv")
    assert config.data == Parquet(path="/data/x")
    assert run_of(data="digits").data == Digits()
    assert run_of(augment="paper").augment == Paper()


def test_paths_are_set_wholes_first_in_any_order():
    settings = {
        "optim.lr": 1,
        "optim.name": "sgd",
        "data.train_limit": 5,
        "data": "/x",
        "model.stem.norm": "layer",
        "model.stem": {"channels": [1]},
    }
    results = []
    for order in itertools.permutations(settings):
        tree = {"optim": {"name": "adamw", "beta1": 0.5}}
        set_paths(tree, {path: settings[path] for path in order})
        results.append(tree)
    assert all(tree == results[0] for tree in results)
    assert results[0] == {
        "optim": {"name": "sgd", "lr": 1},
        "data": {"name": "parquet", "path": "/x", "train_limit": 5},
        "model": {"stem": {"channels": [1], "norm": "layer"}},
    }


def test_leaves_are_dotted_paths_and_an_empty_mapping_is_a_value():
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": None})) == {"a.b": 1, "a.c": {}, "d": None}


# --- faults -------------------------------------------------------------------------------------------


def test_what_is_asked_at_the_end_is_part_of_a_run_and_where_a_set_lies_is_not():
    ask = {"corruptions": {"kinds": ["fog"]}, "shifted": [{"name": "v2", "uri": "/a"}]}
    moved = ask | {"shifted": [{"name": "v2", "uri": "s3://b"}]}
    plain, asked, again = (run_of(evaluate=evaluate) for evaluate in (None, ask, moved))
    assert identity(plain, "x") == identity(run_of(), "x") != identity(asked, "x")
    assert identity(asked, "x") == identity(again, "x")
    other = ask | {"shifted": [{"name": "r", "uri": "/a"}]}
    assert identity(run_of(evaluate=other), "x") != identity(asked, "x")


@pytest.mark.parametrize("names", [["v2", "v2"], ["fog"], ["clean"]])
def test_names_of_shifted_sets_are_their_own(names):
    with pytest.raises(ValidationError, match="names of shifted sets must differ"):
        Evaluation(shifted=tuple(ShiftedSet(name=name, uri="/a") for name in names))


STEM_WORDS = ", ".join(map(repr, STEMS))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"nonsense": 1}, "nonsense: unknown key (got 1)"),
        ({"model.nonsense": 1}, "model.nonsense: unknown key (got 1)"),
        (
            {"optim.name": "adam"},
            "optim.name: must be one of 'adamw', 'sgd', 'lion', 'lamb', 'muon' (got 'adam'); "
            "did you mean `adamw`?",
        ),
        ({"optim": {}}, "optim.name: is missing"),
        ({"data": {"name": "imagenet"}}, "data.name: must be one of 'digits', 'parquet' (got 'imagenet')"),
        ({"batch_size": 0}, "batch_size: must be greater than 0 (got 0)"),
        ({"optim.lr": math.nan}, "optim.lr: must be a finite number (got nan)"),
        (
            {"schedule.warmup": "200%"},
            "schedule.warmup.share: must be less than or equal to 1 (got 2.0)",
        ),
        (
            {"model.stem": "sonv"},
            f"model.stem: must be one of {STEM_WORDS} (got 'sonv'); did you mean `conv`?",
        ),
        (
            {"model.stem": {"norm": "x"}},
            "model.stem.norm: must be one of 'batch', 'layer', 'none' (got 'x')",
        ),
        (
            {"model.size": "2gf"},
            "model.size: must be one of 'nano', '1gf', '4gf', '16gf', '18gf', '36gf', '72gf', 'deepvit_16b', "
            "'deepvit_24b', 'deepvit_32b', 'deepvit_s', 'deepvit_l' (got '2gf')",
        ),
        (
            {"model": {"family": "regnety", "size": "2gf"}},
            "model.size: must be one of 'nano', '1gf', '4gf', '16gf', '32gf' (got '2gf')",
        ),
        ({"recipe": ["x"]}, "recipe: must be one of 'light', 'paper' (got ['x'])"),
        ({"model": "vit_q"}, f"model: no model is called 'vit_q' (these are: {', '.join(NAMED_MODELS)})"),
    ],
    ids=str,
)
def test_one_fault_is_one_message_with_path_rule_and_value(settings, fault, run_tree):
    tree = run_tree()
    set_paths(tree, settings)
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(tree)
    assert [str(found) for found in faults_of(caught.value)] == [fault]


def test_seeds_of_each_stream_differ_and_follow_from_names():
    seeds = Seeds.derived("a", 1)
    assert seeds == Seeds.derived("a", 1) != Seeds.derived("a", 2)
    assert len({seeds.init, seeds.order, seeds.augment}) == 3
    assert seeds.init == derive_seed("a", 1, "init") % 2**32


def test_a_model_of_the_same_family_keeps_what_was_set_when_its_name_changes():
    tree: dict = {}
    set_paths(tree, {"model": {"family": "zoo", "name": "one", "image_size": 32, "arguments": {"name": "x"}}})
    set_paths(tree, {"model.name": "other", "model.arguments.name": "y"})
    assert tree["model"] == {"family": "zoo", "name": "other", "image_size": 32, "arguments": {"name": "y"}}
    set_paths(tree, {"model.family": "vit"})
    assert tree["model"] == {"family": "vit"}


#: Numbers without an end: what lies above the data takes all of them, what lies above the sweep is refused as
#: too many trials, and hours, prices and seeds of a design may be any.
ENDLESS = {
    *("Parquet.train_limit", "Corruptions.images", "Expected.classes", "Expected.train", "Expected.val"),
    *("Expected.test", "Cosine.warmup", "Divergence.window", "TrainConfig.clip_grad_norm"),
}


def numbers_in(schema, place=""):
    """Yields every number in a JSON Schema, with its place as `Type.field`."""
    for name, definition in schema.get("$defs", {}).items():
        yield from numbers_in(definition, name)
    for name, field in schema.get("properties", {}).items():
        nodes = [field]
        while nodes:
            node = nodes.pop()
            if node.get("type") in ("integer", "number"):
                yield f"{place or 'TrainConfig'}.{name}", node
            nodes += [one for key in ("anyOf", "oneOf", "prefixItems") for one in node.get(key, [])]
            nodes += [node["items"]] if isinstance(node.get("items"), dict) else []


def test_every_number_of_a_run_has_an_end():
    found = dict(numbers_in(TrainConfig.model_json_schema()))
    assert len(found) > 60
    without = {
        place
        for place, node in found.items()
        if not {"maximum", "exclusiveMaximum", "const", "enum"} & node.keys()
    }
    assert without == ENDLESS


@pytest.mark.parametrize(
    ("path", "value"),
    [("schedule.epochs", 1e18), ("batch_size", 10**18), ("model.depth", 10**5), ("optim.lr", 1e300)],
)
def test_an_absurd_number_is_refused_at_its_place(path, value):
    tree = {"model": {"family": "vit", "size": "nano"}, "data": "digits", "batch_size": 8}
    tree |= {"optim": {"name": "adamw", "lr": 0.1, "weight_decay": 0}, "schedule": {"epochs": 1}, path: value}
    with pytest.raises(ValidationError) as refused:
        TrainConfig.model_validate(tree)
    [fault] = faults_of(refused.value)
    assert fault.path == path
    assert "must be less than or equal to" in fault.rule
