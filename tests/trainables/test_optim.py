import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn

from trainables.config import NAMED_MODELS, Ema
from trainables.models.vit import ViTConfig
from trainables.optim import LAMB, SGD, AdamW, Cosine, Duration, Lion, MuonAdamW, Share, in_epochs


def pycls_factor(epoch: float, epochs: int, warmup: float, start: float, floor: float) -> float:
    """pycls, `get_epoch_lr` with `lr_fun_cos`, for a base lr of 1."""
    lr = 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
    lr = (1.0 - floor) * lr + floor
    if epoch < warmup:
        alpha = epoch / warmup
        lr *= start * (1.0 - alpha) + alpha
    return lr


@given(
    st.integers(1, 400), st.floats(0, 1), st.floats(0, 60), st.floats(0, 1), st.floats(0, 1), st.booleans()
)
def test_the_schedule_is_that_of_pycls(epochs, progress, warmup, start, floor, per_epoch):
    schedule = Cosine(
        epochs=epochs,
        warmup=warmup,
        warmup_start=start,
        floor=floor,
        per="epoch" if per_epoch else "step",
    )
    epoch = progress * epochs
    at = math.floor(epoch) if per_epoch else epoch
    expected = pycls_factor(at, epochs, warmup, start, floor)
    assert schedule.factor(epoch) == pytest.approx(expected, abs=1e-12)


def test_the_papers_schedule_by_hand():
    # 100 epochs, 5 of warm-up from a tenth, floor of 0.005, once per epoch.
    schedule = Cosine(epochs=100, warmup=5, per="epoch")
    assert schedule.factor(0) == pytest.approx(0.1)
    # Half the cosine is left at half time: 0.995 / 2 + 0.005.
    assert schedule.factor(50) == pytest.approx(0.5025)
    assert schedule.factor(50.99) == schedule.factor(50)
    assert schedule.factor(100) == pytest.approx(0.005)
    # The warm-up lies over the cosine: at epoch 2 it gives 0.1 x 0.6 + 0.4 = 0.46 of it.
    assert schedule.factor(2) == pytest.approx(0.46 * (0.995 * 0.5 * (1 + math.cos(0.02 * math.pi)) + 0.005))


def test_the_first_step_of_a_run_is_taken_at_the_start_of_the_warm_up():
    assert Cosine(epochs=20).factor(0) == pytest.approx(0.1)
    assert Cosine(epochs=20, warmup=0).factor(0) == 1


@pytest.mark.parametrize(
    ("text", "epochs"), [("10%", 5), (5, 5), ("0%", 0), ("100%", 50), (2.5, 2.5), (" 3 ", 3)]
)
def test_a_duration_is_a_number_of_epochs_or_a_share_of_the_run(text, epochs):
    assert in_epochs(TypeAdapter(Duration).validate_python(text), 50) == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abc", "valid number"),
        ("abc%", "valid number"),
        ("200%", "less than or equal to 1"),
        (-1, "or equal to 0"),
    ],
)
def test_a_bad_duration_gets_one_message(text, words):
    with pytest.raises(ValidationError, match=words) as caught:
        TypeAdapter(Duration).validate_python(text)
    assert caught.value.error_count() == 1


def test_a_duration_survives_json():
    schedule = Cosine(epochs=3, warmup="10%")
    assert Cosine.model_validate(schedule.model_dump(mode="json")) == schedule
    assert schedule.warmup == Share(share=0.1)


OPTIMS = [kind(lr=1e-3, weight_decay=0.3) for kind in (AdamW, SGD, Lion, LAMB, MuonAdamW)]
SMALL = ViTConfig(image_size=16, patch_size=4, width=16, depth=3, heads=2, mlp_ratio=2, stem="conv")


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda optim: optim.name)
def test_biases_and_gains_do_not_decay_and_positions_and_class_token_do(optim):
    model = SMALL.network(5)
    optimizer = optim.build(model, 64, SMALL.outer_names(model))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    norms = nn.LayerNorm, nn.BatchNorm2d
    exempt = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        for leaf, _ in module.named_parameters(recurse=False)
        if leaf == "bias" or isinstance(module, norms)
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0 if name in exempt else 0.3), name
    assert {"class_token", "position", "stem.0.weight", "head.weight"}.isdisjoint(exempt)


def test_the_same_rule_holds_for_the_convolutional_baselines():
    with torch.device("meta"):
        model = NAMED_MODELS["resnet_50"].network(10)
    optimizer = SGD(lr=0.1, weight_decay=0.3).build(model, 64, ())
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def one_parameter() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    return model


def steps(optim, gradients: list[float]) -> list[float]:
    model = one_parameter()
    optimizer = optim.build(model, 64, ())
    values = []
    for gradient in gradients:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
        values.append(model.weight.item())
    return values


def test_adamw_takes_the_step_of_its_paper_with_pytorchs_decay():
    # Loshchilov and Hutter 2019, algorithm 2, decay multiplied by lr as PyTorch does it.
    lr, wd, b1, b2, eps, weight = 0.1, 0.3, 0.8, 0.95, 1e-8, 2.0
    gradients, first, second, expected = [0.5, -0.2, 0.7], 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        weight -= lr * wd * weight
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        weight -= lr * (first / (1 - b1**t)) / (math.sqrt(second / (1 - b2**t)) + eps)
        expected.append(weight)
    assert steps(AdamW(lr=lr, weight_decay=wd, beta1=b1, beta2=b2), gradients) == pytest.approx(expected)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_adds_decay_to_the_gradient_and_looks_ahead_with_nesterov(nesterov):
    lr, wd, momentum, weight = 0.1, 0.3, 0.9, 2.0
    gradients, velocity, expected = [0.5, -0.2, 0.7], None, []
    for gradient in gradients:
        g = gradient + wd * weight
        velocity = g if velocity is None else momentum * velocity + g
        weight -= lr * (g + momentum * velocity if nesterov else velocity)
        expected.append(weight)
    optim = SGD(lr=lr, weight_decay=wd, momentum=momentum, nesterov=nesterov)
    assert steps(optim, gradients) == pytest.approx(expected)


def test_lion_takes_the_step_of_its_paper():
    # Chen et al. 2023, program 1, decay multiplied by lr.
    lr, wd, b1, b2, weight, momentum, expected = 0.1, 0.3, 0.9, 0.8, 2.0, 0.0, []
    gradients = [0.5, -2.0, 0.1, 0.7]
    for g in gradients:
        weight -= lr * (math.copysign(1, b1 * momentum + (1 - b1) * g) + wd * weight)
        momentum = b2 * momentum + (1 - b2) * g
        expected.append(weight)
    assert steps(Lion(lr=lr, weight_decay=wd, beta1=b1, beta2=b2), gradients) == pytest.approx(expected)


def test_lamb_takes_the_step_of_its_paper():
    # You et al. 2020, algorithm 2: Adam's step and decay, times the norm of the weights over its own; on
    # one tensor of two numbers, so that the norms are not those of a sign.
    lr, wd, b1, b2, eps = 0.1, 0.3, 0.8, 0.95, 1e-6
    weight, first, second = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))
    optimizer = LAMB(lr=lr, weight_decay=wd, beta1=b1, beta2=b2).build(model, 64, ())
    for t, gradient in enumerate([[5.0, 0.1], [-2.0, 3.0], [0.7, -9.0]], start=1):
        first = [b1 * m + (1 - b1) * g for m, g in zip(first, gradient, strict=True)]
        second = [b2 * v + (1 - b2) * g * g for v, g in zip(second, gradient, strict=True)]
        step = [
            m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps) + wd * w
            for m, v, w in zip(first, second, weight, strict=True)
        ]
        ratio = math.hypot(*weight) / math.hypot(*step)
        weight = [w - lr * ratio * s for w, s in zip(weight, step, strict=True)]
        model.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert model.weight[0].tolist() == pytest.approx(weight)


def test_lamb_scales_no_bias():
    # Without decay a step is Adam's: the first is lr long, whatever the gradient and the weight.
    model = nn.Linear(1, 1)
    nn.init.constant_(model.bias, 50)
    optimizer = LAMB(lr=0.1, weight_decay=0.3).build(model, 64, ())
    model.weight.grad, model.bias.grad = torch.ones(1, 1), torch.full((1,), 7.0)
    optimizer.step()
    assert model.bias.item() == pytest.approx(49.9)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_steps_matrices_like_torchs_muon_and_the_rest_like_adamw(nesterov):
    torch.manual_seed(0)
    model, twin = SMALL.network(5), SMALL.network(5)
    twin.load_state_dict(model.state_dict())
    lr, wd = 0.02, 0.3
    optim = MuonAdamW(lr=lr, weight_decay=wd, nesterov=nesterov)
    ours = optim.build(model, 64, SMALL.outer_names(model))
    matrices = {n: p for n, p in twin.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    convs = {n: p for n, p in twin.named_parameters() if n in ("stem.3.weight", "stem.6.weight")}
    rest = [p for n, p in twin.named_parameters() if n not in matrices and n not in convs]
    # torch's takes matrices only: convolutions go in flattened, sharing the memory of their weights.
    flat = [nn.Parameter(p.data.flatten(1)) for p in convs.values()]
    muon = torch.optim.Muon(
        [*matrices.values(), *flat],
        lr,
        wd,
        momentum=0.95,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0},
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": wd},
        ],
        lr,
        (0.9, 0.95),
    )
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for parameter, conv in zip(flat, convs.values(), strict=True):
            parameter.grad = conv.grad.flatten(1)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        # Both iterate in bfloat16, of which 0.4 % of a step of lr is the last digit.
        assert torch.allclose(p, q, atol=0.02 * lr), name


def test_muon_leaves_the_outer_layers_of_every_family_to_adamw():
    for name in ("vit_p_1gf", "vit_c_1gf", "regnety_1gf", "resnet_50"):
        with torch.device("meta"):
            model = NAMED_MODELS[name].network(10)
        optimizer = MuonAdamW(lr=1, weight_decay=0).build(model, 64, NAMED_MODELS[name].outer_names(model))
        held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        assert len(held) == len(list(model.parameters()))
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        left = [p for p in matrices if "use_muon" not in held[id(p)]]
        # First and last layer; of a transformer also class token and positions.
        assert len(left) == (4 if name.startswith("vit") else 2), name
        assert {p.shape[0] for p in left} >= {10}
        assert not any("use_muon" in held[id(p)] for p in model.parameters() if p.ndim < 2)


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda optim: optim.name)
def test_an_optimizer_taken_up_from_a_checkpoint_goes_on_to_the_bit(optim):
    def advance(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (1 + seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    torch.manual_seed(0)
    model = SMALL.network(5)
    optimizer = optim.build(model, 64, SMALL.outer_names(model))
    advance(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    advance(model, optimizer, range(3, 6))
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again = SMALL.network(5)
    again.load_state_dict(weights)
    taken_up = optim.build(again, 64, SMALL.outer_names(again))
    taken_up.load_state_dict(state)
    advance(again, taken_up, range(3, 6))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sgd_without_momentum_is_plain_gradient_descent():
    # 2 - 0.1 x 0.5 = 1.95.
    assert steps(SGD(lr=0.1, weight_decay=0, momentum=0), [0.5]) == pytest.approx([1.95])


@pytest.mark.parametrize(
    ("settings", "batch_size", "peak"),
    [
        ({"lr": 0.8}, 64, 0.8),
        ({"lr": 0.8, "lr_batch_size": 2048}, 64, 0.025),
        ({"lr": 0.8, "lr_batch_size": 2048, "lr_scaling": "sqrt"}, 128, 0.2),
        ({"lr": 0.8, "lr_batch_size": 64}, 64, 0.8),
    ],
)
def test_the_peak_lr_follows_the_batch_where_a_batch_is_quoted(settings, batch_size, peak):
    optim = SGD(weight_decay=0, **settings)
    assert optim.peak_lr(batch_size) == pytest.approx(peak)
    assert optim.build(one_parameter(), batch_size, ()).param_groups[0]["lr"] == pytest.approx(peak)


@pytest.mark.parametrize(("epochs", "alpha"), [(50, 0.0131), (100, 0.0066), (200, 0.0033), (400, 0.0016)])
def test_weight_averaging_has_the_papers_alpha(epochs, alpha):
    # 1e-5 x 2048 x 32 / epochs on the 1,281,167 images of ImageNet, with four digits as computed there.
    total_steps = epochs * math.ceil(1281167 / 2048)
    assert Ema().interval(total_steps) == 32
    assert 1 - Ema().decay(total_steps) == pytest.approx(alpha, abs=5e-5)
    assert 1 - Ema().decay(total_steps) == pytest.approx(1e-5 * 2048 * 32 / epochs, rel=2e-3)


@given(st.integers(1, 3000))
def test_weight_averaging_of_a_short_run_looks_back_as_far_as_it_should(total_steps):
    ema = Ema()
    constant = ema.time_constant * total_steps
    interval, decay = ema.interval(total_steps), ema.decay(total_steps)
    if constant < 10:
        assert interval == 1
    else:
        assert interval <= constant / 10
        # Over one time constant the average keeps (1 - a)^(1/a) of itself, near 1/e for small a.
        assert decay ** (constant / interval) == pytest.approx(math.exp(-1), rel=0.06)
