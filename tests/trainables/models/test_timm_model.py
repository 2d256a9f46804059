import socket

import pytest
import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from timm.optim import param_groups_weight_decay

from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.plan import data_configs, make_plan
from trainables.config import Start, TrainConfig
from trainables.context import Context
from trainables.identity import identity
from trainables.models.timm_model import TimmConfig
from trainables.models.vit import ViTConfig
from trainables.optim import AdamW, MuonAdamW
from trainables.profiling.dry_run import Unfit, check, check_model, check_start
from trainables.tasks.classification import Classification


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Every connection is an error."""

    def refused(*args, **kwargs):
        raise AssertionError("a model asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def small(name: str = "convnext_atto.d2_in1k", **settings) -> TimmConfig:
    return TimmConfig(**{"name": name, "image_size": 32} | settings)


def fault_of(**settings) -> str:
    with pytest.raises(ValidationError) as caught:
        small(**settings)
    [error] = caught.value.errors()
    return ".".join(map(str, error["loc"])) + ": " + error["msg"].removeprefix("Value error, ")


# --- what is built ------------------------------------------------------------------------------------


def test_the_network_is_the_one_that_timm_makes():
    torch.manual_seed(3)
    network = small(arguments={"drop_rate": 0.2}, drop_path=0.1).network(7)
    torch.manual_seed(3)
    timms = timm.create_model("convnext_atto.d2_in1k", num_classes=7, drop_rate=0.2, drop_path_rate=0.1)
    assert str(network) == str(timms)
    assert all(
        torch.equal(one, other) for one, other in zip(network.parameters(), timms.parameters(), strict=True)
    )


@pytest.mark.parametrize("side", [32, 48])
def test_an_architecture_of_one_size_is_made_for_the_size_that_is_asked_for(side):
    network = small("vit_tiny_patch16_224", image_size=side).network(7)
    assert network.pos_embed.shape == (1, (side // 16) ** 2 + 1, 192)


def test_an_architecture_fills_the_size_that_it_is_known_for():
    # timm's page of the model: trained at 224, tested at 288.
    assert TimmConfig(name="convnext_atto.d2_in1k").image_size == 224
    assert TimmConfig(name="efficientnet_b4").image_size == 320


def test_stochastic_depth_is_off_unless_it_is_asked_for_and_refused_where_there_is_none():
    assert small("vgg11").cost(3)
    rule = "the architecture has no stochastic depth: leave `drop_path` out"
    assert fault_of(name="vgg11", drop_path=0.1) == f": cannot be built: ValueError: {rule}"


@pytest.mark.parametrize("side", [224, 96])
def test_a_transformer_of_timm_costs_what_its_closed_form_says(side):
    ours = ViTConfig(width=192, depth=12, heads=3, mlp_ratio=4, image_size=side)
    assert TimmConfig(name="vit_tiny_patch16_224", image_size=side).cost(1000) == ours.cost(1000)


def test_a_convnet_of_timm_costs_what_the_same_baseline_does():
    from trainables.models.cnn import ResNetConfig

    assert TimmConfig(name="resnet50", image_size=64).cost(10) == ResNetConfig(image_size=64).cost(10)


def test_a_network_that_hands_its_parameters_to_its_layers_is_counted():
    assert small("cait_xxs24_224").cost(10).flops > 0


# --- how it is trained --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet10t"])
def test_what_decays_is_what_decays_in_timm(name):
    network = small(name).network(5)
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    theirs = {
        id(p): group["weight_decay"]
        for group in param_groups_weight_decay(network, 0.3, no_weight_decay_list=exempt)
        for p in group["params"]
    }
    groups = AdamW(lr=1, weight_decay=0.3).build(network, 64, ()).param_groups
    assert {id(p): group["weight_decay"] for group in groups for p in group["params"]} == theirs
    if name.startswith("vit"):
        assert theirs[id(network.pos_embed)] == theirs[id(network.cls_token)] == 0


def test_muon_leaves_head_first_layer_positions_and_tokens_of_timm_to_adamw():
    config = small("vit_tiny_patch16_224")
    network = config.network(5)
    optimizer = MuonAdamW(lr=1, weight_decay=0).build(network, 64, config.outer_names(network))
    inner = {id(p) for group in optimizer.param_groups if group.get("use_muon") for p in group["params"]}
    matrices = {
        name
        for name, p in network.named_parameters()
        if p.ndim > 1 and name not in ("pos_embed", "cls_token")
    }
    assert {name for name, p in network.named_parameters() if id(p) in inner} == matrices - {
        "patch_embed.proj.weight",
        "head.weight",
    }


def test_a_distilled_network_has_two_heads():
    config = small("deit_tiny_distilled_patch16_224")
    names = config.head_names(config.network(5))
    assert names == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "resnet10t"])
def test_a_dry_run_finds_that_it_trains_and_that_its_state_loads(name, run_tree, tmp_path):
    tree = run_tree(model={"family": "timm", "name": name, "image_size": 32, "drop_path": 0.1}, batch_size=4)
    assert check(TrainConfig.model_validate(tree), Context(), folder=str(tmp_path)).step_seconds > 0


def test_a_run_may_start_from_another_of_other_classes_and_from_no_other_architecture(run_tree):
    model = {"family": "timm", "name": "resnet10t", "image_size": 32}
    start = Start(run=TrainConfig.model_validate(run_tree(model=model)))
    check_start(start, small("resnet10t"), 7, 10)
    with pytest.raises(Unfit, match="the weights to start from are of another model"):
        check_start(start, small("resnet14t"), 7, 10)


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"name": "convnext_ato"},
            "name: timm has no architecture 'convnext_ato'; did you mean `convnext_atto`?",
        ),
        (
            {"name": "convnext_atto.d3_in1k"},
            "name: timm has no architecture 'convnext_atto.d3_in1k'; did you mean `convnext_atto.d2_in1k`?",
        ),
        ({"name": "hf-hub:timm/resnet18"}, "name: timm has no architecture 'hf-hub:timm/resnet18'"),
        ({"arguments": {"num_classes": 3}}, "arguments: may not hold num_classes: the data decide it"),
        (
            {"arguments": {"checkpoint_path": "x", "img_size": 3}},
            "arguments: may not hold checkpoint_path: `pretrained` names a local file; "
            "img_size: `image_size` decides it",
        ),
    ],
)
def test_a_fault_names_the_setting_and_the_rule(settings, fault):
    assert fault_of(**settings) == fault


def test_an_argument_that_the_constructor_does_not_know_is_a_fault():
    fault = fault_of(arguments={"depth_": 3})
    assert fault.startswith(": cannot be built: TypeError: ")
    # Python 3.13 adds a suggestion.
    assert "unexpected keyword argument 'depth_'" in fault


def test_a_size_that_an_architecture_does_not_take_is_a_fault():
    fault = fault_of(name="vit_tiny_patch16_224", image_size=8)
    assert fault.startswith(": takes no images of 8 pixels: ")
    fault = fault_of(name="coatnet_rmlp_nano_rw_224", image_size=20)
    assert fault.startswith(": takes no images of 20 pixels: ")


SWEEP = """
base: {{data: digits, optim: {{name: adamw, weight_decay: 0.1}}, schedule.epochs: 1, batch_size: 64}}
arms:
  one: {{model: {{family: timm, name: resnet10t, image_size: 32}}}}
  other:
    model: {{family: timm, image_size: 32, name: {name}{more}}}
design: {{kind: sobol, points: 2}}
vary:
  optim.lr: {{log_uniform: [1.0e-4, 1.0e-2]}}
"""


def sweep_file(folder, name="convnext_atto", more=""):
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(name=name, more=f", {more}" if more else ""))
    return path


def test_a_fault_of_a_sweep_has_its_place(tmp_path):
    path = sweep_file(tmp_path, "convnext_ato")
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    [fault] = caught.value.faults
    assert (fault.path, fault.place.removeprefix(str(path))) == ("arms.other.model.name", ":6:43")
    path = sweep_file(tmp_path, more="arguments: {depth_: 3}")
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    [fault] = caught.value.faults
    assert fault.path == "arms.other.model"
    assert fault.place.startswith(f"{path}:6:")


def test_architectures_are_arms_and_their_arguments_can_be_varied(tmp_path):
    path = sweep_file(tmp_path, more="arguments: {drop_rate: 0.1}")
    path.write_text(path.read_text() + "  model.arguments.drop_rate: {uniform: [0.0, 0.5]}\n")
    sweep = load_sweep(path)
    infos = {config: config.info() for config in data_configs(sweep)}
    trials = make_plan(sweep, infos).trials
    assert [trial.config.model.name for trial in trials] == ["resnet10t", "convnext_atto"] * 2
    rates = [trial.config.model.arguments["drop_rate"] for trial in trials]
    assert rates[0] == rates[1] != rates[2] == rates[3]
    assert len({trial.id for trial in trials}) == 4


# --- weights of a file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights of 5 classes, and the two files that hold them."""
    torch.manual_seed(0)
    weights = timm.create_model("resnet10t", num_classes=5).state_dict()
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"state_dict": weights}, folder / "weights.pth")
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    return weights, folder


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_weights_are_read_from_a_local_file(file, saved):
    weights, folder = saved
    config = small("resnet10t", pretrained=str(folder / file))
    for name, tensor in config.network(5).state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_classifier_of_other_classes_starts_anew(saved):
    weights, folder = saved
    torch.manual_seed(1)
    network = small("resnet10t", pretrained=str(folder / "weights.pth")).network(7)
    torch.manual_seed(1)
    fresh = small("resnet10t").network(7).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("fc.") else weights[name]), name


def test_positions_of_another_size_are_interpolated(tmp_path):
    weights = small("vit_tiny_patch16_224", image_size=64).network(5).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    network = small("vit_tiny_patch16_224", pretrained=str(tmp_path / "weights.pth")).network(5)
    assert network.pos_embed.shape == (1, 5, 192)
    assert torch.equal(network.head.weight, weights["head.weight"])


def test_weights_of_another_architecture_are_a_fault_before_anything_runs(saved):
    path = str(saved[1] / "weights.pth")
    wrong = f": cannot be built: ValueError: {path} does not hold its weights: "
    fault = fault_of(name="resnet14t", pretrained=path)
    assert fault.startswith(f"{wrong}RuntimeError: Missing key(s) in state_dict: ")
    assert fault_of(name="convnext_atto", pretrained=path).startswith(wrong)


def test_a_file_that_holds_no_weights_is_a_fault(tmp_path):
    (tmp_path / "weights.pth").write_text("none")
    fault = fault_of(name="resnet10t", pretrained=str(tmp_path / "weights.pth"))
    assert fault.startswith(": cannot be built: ")


def test_a_file_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pth")
    assert fault_of(name="resnet10t", pretrained=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_run_is_known_by_what_the_weights_are_and_not_by_where_they_lie(saved, tmp_path, run_tree):
    def id_of(path) -> str:
        model = {"family": "timm", "name": "resnet10t", "image_size": 32, "pretrained": path and str(path)}
        return identity(TrainConfig.model_validate(run_tree(model=model)), "data")

    first = saved[1] / "weights.pth"
    copy = tmp_path / "copy.pth"
    copy.write_bytes(first.read_bytes())
    assert id_of(first) == id_of(copy)
    assert len({id_of(first), id_of(saved[1] / "weights.safetensors"), id_of(None)}) == 3


def test_weights_that_changed_since_are_not_taken(saved, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes((saved[1] / "weights.pth").read_bytes())
    config = small("resnet10t", pretrained=str(path))
    torch.save(small("resnet10t").network(5).state_dict(), path)
    # Its costs, and so a report, need no weights.
    again = TimmConfig.model_validate(config.model_dump(mode="json"))
    assert again.cost(10) == config.cost(10)
    check_model(again, Classification(), 10)
    with pytest.raises(ValueError, match="when the run was configured"):
        again.network(5)


def test_a_sweep_finds_weights_beside_its_file_and_keeps_their_digest(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "weights.pth").write_bytes((saved[1] / "weights.pth").read_bytes())
    sweep = load_sweep(sweep_file(folder, "resnet10t", "pretrained: weights.pth"))
    [name] = [value for key, value in sweep.arms["other"].items() if key.endswith("pretrained")]
    config, _ = sweep.settings("other", (), {"optim.lr": 0.1})
    assert config.model.pretrained == name
    assert config.model.pretrained.path == str(folder / "weights.pth")
    assert len(config.model.pretrained.digest) == 16
    with pytest.raises(SweepError, match=r"none\.pth: there is no such file \(none\.pth was looked for in "):
        load_sweep(sweep_file(folder, "resnet10t", "pretrained: none.pth"))
