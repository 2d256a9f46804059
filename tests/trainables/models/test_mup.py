"""The maximal update parametrization: rates by hand, and steps of one size at all widths."""

import contextlib
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trainables.config import TrainConfig
from trainables.models.vit import ViTConfig
from trainables.optim import AdamW, Lion
from trainables.training.step import Learner, training_step

WIDTH = 32


def vit(**settings) -> ViTConfig:
    small = {"image_size": 32, "patch_size": 8, "width": WIDTH, "depth": 3, "heads": 4, "mlp_ratio": 2}
    return ViTConfig.model_validate(small | {"parametrization": "mup", "mup_width": WIDTH} | settings)


def network(config, seed=0):
    torch.manual_seed(seed)
    return config.network(10)


def rates(model) -> dict[str, float]:
    return {name: p.lr_scale for name, p in model.named_parameters() if hasattr(p, "lr_scale")}


def test_at_its_own_width_it_is_the_standard_parametrization():
    images = torch.rand(2, 3, 32, 32)
    mup, standard = (network(vit(parametrization=kind)) for kind in ("mup", "standard"))
    with torch.no_grad():
        for model in (mup, standard):
            model.head.weight.copy_(
                torch.linspace(-1, 1, model.head.weight.numel()).view_as(model.head.weight)
            )
    assert torch.equal(mup(images), standard(images))
    assert rates(mup) == rates(standard) == {}
    groups = [AdamW(lr=1, weight_decay=0.1).build(model, 8, ()).param_groups for model in (mup, standard)]
    assert [len(group["params"]) for group in groups[0]] == [len(group["params"]) for group in groups[1]]


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_weights_learn_by_their_fan_in(stem):
    found = rates(network(vit(width=4 * WIDTH, stem=stem)))
    hidden = [f"{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    blocks = 3 if stem == "patchify" else 2
    expected = {f"blocks.{block}.{name}": 1 / 4 for block in range(blocks) for name in hidden}
    expected["head.weight"] = 1 / 4
    if stem == "conv":
        # The first convolution sees 3 colours at any width. For 8 pixels, two others and a 1x1 follow.
        expected |= {f"stem.{place}.weight": 1 / 4 for place in (3, 6, 9)}
    assert found == expected


def test_scores_are_divided_by_the_width_of_a_head():
    wide = network(vit(width=4 * WIDTH))
    # Heads of 32 instead of 8 channels.
    attention = wide.blocks[0].attn
    assert attention.scale == pytest.approx(math.sqrt(8) / 32)
    x = torch.randn(2, 5, 4 * WIDTH)
    fused = attention(x)
    maps = []
    attention.observer = lambda soft, _: maps.append(soft)
    assert torch.allclose(attention(x), fused, atol=1e-6)
    q, k, _ = attention.qkv(x).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    assert torch.allclose(maps[0], (q @ k.mT * math.sqrt(8) / 32).softmax(-1), atol=1e-6)
    # As many channels a head as at the base, in more heads: as in the standard parametrization.
    more_heads = network(vit(width=4 * WIDTH, heads=16, mup_heads=4))
    assert more_heads.blocks[0].attn.scale == pytest.approx(8**-0.5)


def learner(model, config, optim):
    return Learner(
        model,
        optim.build(model, 64, config.outer_names(model)),
        torch.amp.GradScaler("cpu", enabled=False),
        lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets, reduction="sum"),
        contextlib.nullcontext,
    )


def changes(width, kind, stem, steps=4) -> list[float]:
    """How far training moves the outputs of each block, and the logits, by root mean square."""
    config = vit(width=width, parametrization=kind, stem=stem)
    model = network(config)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (32,), generator=generator)

    @torch.no_grad()
    def seen():
        outputs = []
        hooks = [block.register_forward_hook(lambda *of: outputs.append(of[2])) for block in model.blocks]
        outputs.append(model(images))
        for hook in hooks:
            hook.remove()
        return outputs

    before = seen()
    taught = learner(model, config, AdamW(lr=1e-2, weight_decay=0))
    for _ in range(steps):
        training_step(taught, images, labels, 1e-2, 1 / 32)
    return [(a - b).square().mean().sqrt().item() for a, b in zip(seen(), before, strict=True)]


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_steps_are_of_one_size_at_all_widths_where_those_of_the_standard_grow(stem):
    widths = (32, 64, 128, 256)
    slopes = {}
    for kind in ("mup", "standard"):
        moved = np.log2([changes(width, kind, stem) for width in widths])
        slopes[kind] = np.polyfit(np.log2(widths), moved, 1)[0]
    # In octaves per doubling of the width.
    assert np.abs(slopes["mup"]).max() < 0.15
    assert slopes["standard"].min() > 0.3


def test_the_optimizer_steps_at_scaled_rates_and_decays_as_asked():
    config = vit(width=4 * WIDTH)
    model = network(config)
    for optim, decay in (
        (AdamW(lr=1e-3, weight_decay=0.1), 0.1),
        (AdamW(lr=1e-3, weight_decay=0.1, independent_decay=True), 0.4),
        (Lion(lr=1e-3, weight_decay=0.1, independent_decay=True), 0.4),
    ):
        taught = learner(model, config, optim)
        training_step(taught, torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), 2e-3, 1 / 4)
        groups = {
            (group["lr"], group["weight_decay"]): {id(p) for p in group["params"]}
            for group in taught.optimizer.param_groups
        }
        assert id(model.blocks[0].attn.qkv.weight) in groups[0.5e-3, decay]
        assert id(model.stem[0].weight) in groups[2e-3, 0.1]
        assert id(model.blocks[0].attn.qkv.bias) in groups[2e-3, 0.0]


def test_what_makes_no_model_or_has_no_rates_is_refused(run_tree):
    with pytest.raises(
        ValidationError, match="mup_heads make no model: heads must divide width, got heads=4, width=30"
    ):
        vit(mup_width=30)
    # The paper's stem from 768 channels on, against the halving one.
    large = {"width": 768, "heads": 12, "image_size": 224, "patch_size": 16, "stem": "conv"}
    with pytest.raises(ValidationError, match="its conv stem has other layers than that of width 768"):
        vit(**large, mup_width=192)
    with pytest.raises(ValidationError, match="the rates of mup are those of adamw and lion"):
        TrainConfig.model_validate(
            run_tree(
                **{"model.parametrization": "mup", "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 0}}
            )
        )
    with pytest.raises(ValidationError, match="independent_decay is of"):
        TrainConfig.model_validate(run_tree(**{"optim.independent_decay": True}))
