import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from trainables.__main__ import main
from trainables.base import Invalid
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.identity import identity
from trainables.presets import set_paths
from trainables.training.loop import train
from trainables.training.transfer import final_weights, take_over

#: The classifier of the models here, which are vision transformers but for one.
HEAD = {"head.weight", "head.bias"}

#: So small that a step vanishes in single precision.
NO_STEP = 1e-46


@pytest.fixture
def config_of(run_tree):
    return lambda **settings: TrainConfig.model_validate(run_tree(**settings))


@pytest.fixture
def first(run_tree):
    return run_tree(**{"model.stem": "conv", "optim.lr": 8e-3, "ema": {"every_steps": 2}})


@pytest.fixture
def trained(first):
    """The last row and checkpoint of a first run."""
    *_, (row, state) = train(TrainConfig.model_validate(first), Context())
    file = io.BytesIO()
    state.save(file)
    return row, file.getvalue()


def weights_of(trained) -> dict[str, torch.Tensor]:
    return final_weights(io.BytesIO(trained[1]))


def test_a_second_run_starts_where_the_first_one_ended(first, trained, config_of):
    second = config_of(**{"model.stem": "conv", "optim.lr": NO_STEP, "start": {"run": first}})
    row, state = next(train(second, Context(), start=io.BytesIO(trained[1])))
    # What the first run was judged by is its average, and a second one that cannot move stays there;
    # only batch norm takes new statistics.
    for name, parameter in state.model.named_parameters():
        assert torch.equal(parameter, weights_of(trained)[name]), name
    assert row.val_error_pct < 80


def test_weights_of_another_model_are_refused_with_what_does_not_fit(first, trained, config_of):
    patchify = config_of(start={"run": first})
    with pytest.raises(Invalid, match=r"of another model: blocks\.1\..* wants .*, finds nothing"):
        next(train(patchify, Context(), start=io.BytesIO(trained[1])))


def test_a_second_run_goes_on_from_its_own_checkpoint_without_the_first(first, trained, config_of):
    second = config_of(**{"model.stem": "conv", "start": {"run": first}})
    states = train(second, Context(), start=io.BytesIO(trained[1]))
    _, state = next(states)
    file = io.BytesIO()
    state.save(file)
    _, state = next(states)
    file.seek(0)
    *_, (_, again) = train(second, Context(), file)
    assert again.weights_digest() == state.weights_digest()


def test_weights_are_given_where_they_are_asked_for_and_only_there(first, trained, config_of):
    with pytest.raises(Invalid, match="from the weights of another run, and was given none"):
        next(train(config_of(start={"run": first}), Context()))
    with pytest.raises(Invalid, match="from the beginning, and was given weights"):
        next(train(config_of(), Context(), start=io.BytesIO(trained[1])))


def test_another_number_of_classes_gets_a_new_head_and_the_rest_is_kept(first, trained):
    config = TrainConfig.model_validate(first).model
    model = config.network(7)
    take_over(model, weights_of(trained), "all", HEAD)
    # A new head is zero.
    assert model.head.weight.shape == (7, 16)
    assert not model.head.weight.any()
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, weights_of(trained)[name])
    same = config.network(10)
    take_over(same, weights_of(trained), "all", HEAD)
    assert torch.equal(same.head.weight, weights_of(trained)["head.weight"])
    assert same.head.weight.any()


@pytest.mark.parametrize("side", [24, 56, 8])
def test_positions_are_interpolated_as_pillow_interpolates_an_image(side, first, trained):
    model = TrainConfig.model_validate(first).model.model_copy(update={"image_size": side}).network(10)
    take_over(model, weights_of(trained), "all", HEAD)
    position = weights_of(trained)["position"][0]
    # 16 pixels are 2 x 2 patches of 8.
    grid, new = position[1:].reshape(2, 2, -1), side // 8
    for channel in range(grid.shape[-1]):
        plane = Image.fromarray(grid[..., channel].numpy())
        expected = np.asarray(plane.resize((new, new), Image.Resampling.BICUBIC)).ravel()
        assert model.position[0, 1:, channel].detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(model.position[0, 0], position[0])


def test_the_stem_alone_can_be_taken_over_and_frozen(first, trained, config_of):
    settings = {"model.stem": "conv", "model.freeze_stem": True, "model.depth": 3, "model.mlp_ratio": 4}
    second = config_of(**settings, start={"run": first, "parts": "stem"})
    *_, (_, state) = train(second, Context(), start=io.BytesIO(trained[1]))
    stem = dict(state.model.stem.named_parameters())
    assert stem
    for name, parameter in stem.items():
        assert torch.equal(parameter, weights_of(trained)[f"stem.{name}"])
    torch.manual_seed(second.seeds.init)
    fresh = second.model.network(10)
    take_over(fresh, weights_of(trained), "stem", HEAD)
    torch.manual_seed(second.seeds.init)
    untouched = second.model.network(10)
    for name, tensor in fresh.state_dict().items():
        assert name.startswith("stem.") or torch.equal(tensor, untouched.state_dict()[name])
    resnet = config_of(model={"family": "resnet", "layers": 18, "image_size": 32}).model.network(10)
    with pytest.raises(Invalid, match="no part of that name"):
        take_over(resnet, weights_of(trained), "stem", HEAD)
    wider = config_of(
        **{"model.stem": {"channels": [4, 8, 16]}, "model.width": 32, "model.freeze_stem": "convolutions"}
    )
    torch.manual_seed(0)
    model = wider.model.network(10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_over(model, weights_of(trained), "stem", HEAD)
    assert {name for name, tensor in model.stem.named_parameters() if tensor.requires_grad} == {
        "9.weight",
        "9.bias",
    }
    for name, tensor in model.state_dict().items():
        is_taken = name.startswith("stem.") and not name.startswith("stem.9.")
        assert torch.equal(tensor, (weights_of(trained) if is_taken else before)[name]), name
    wide = config_of(**{"model.stem": "conv", "model.width": 32}).model.network(10)
    with pytest.raises(Invalid, match=r"stem\.0\.weight wants \[8, 3, 3, 3\], finds \[4, 3, 3, 3\]"):
        take_over(wide, weights_of(trained), "stem", HEAD)


def test_a_run_is_known_by_what_it_starts_from_and_not_by_a_file(first, config_of):
    plain = config_of()
    one = config_of(start={"run": first})
    ids = {
        identity(plain, "data"),
        identity(one, "data", "first"),
        identity(one, "data", "other"),
        identity(config_of(start={"run": first, "parts": "stem"}), "data", "first"),
    }
    assert len(ids) == 4
    # The same first run from another place: its data count by their fingerprint, inside its identity.
    moved = config_of(start={"run": first | {"data": "/elsewhere"}})
    assert identity(moved, "data", "first") == identity(one, "data", "first")
    for config, start in ((one, None), (plain, "first")):
        with pytest.raises(ValueError, match="needs that one's identity"):
            identity(config, "data", start)


def test_short_forms_and_dotted_paths_reach_the_first_run(run_tree):
    tree = run_tree()
    tree["start"] = {"run": {"model": "vit_c_1gf", "data": "digits", "optim": {"name": "sgd"}}}
    tree["start"]["run"] |= {"schedule": {"epochs": 3}, "recipe": "paper"}
    set_paths(
        tree,
        {
            "start.run.model.image_size": 32,
            "start.run.model.patch_size": 8,
            "start.run.data.split_seed": 4,
            "start.run.optim.lr": 0.1,
            "start.run.optim.weight_decay": 0,
        },
    )
    run = TrainConfig.model_validate(tree).start.run
    assert (run.model.stem, run.model.image_size, run.model.width) == ("conv", 32, 192)
    assert (run.data.split_seed, run.optim.name, run.batch_size) == (4, "sgd", 2048)


def test_two_runs_from_files(run_tree, first, tmp_path, capsys):
    second = run_tree(**{"model.stem": "conv", "schedule.epochs": 1, "start": {"run": first}})
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, tree in zip(paths, (first, second), strict=True):
        path.write_text(yaml.safe_dump(tree))
    weights = tmp_path / "first.pt"
    assert main([str(paths[0]), "--save", str(weights)]) == 0
    assert main([str(paths[1]), "--start", str(weights)]) in (0, 1)
    assert main([str(paths[1])]) == 2
    assert "was given none" in capsys.readouterr().err
    assert main([str(paths[1]), "--start", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err
