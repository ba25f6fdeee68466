"""The networks: shapes, where the normalization stands, and the same initial weights in every arm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from bnlib import models
from bnlib.models import (
    KEEP_MEAN,
    NORMS,
    blocks,
    build,
    deep_linear,
    digit_cnn,
    initialise,
    layers,
    mlp,
    residual_mlp,
    vgg,
)
from bnlib.norms import BatchNorm

ARMS = {
    "vgg": ({"width": 0.125}, (2, 3, 32, 32), 8),
    "digit_cnn": ({}, (2, 1, 28, 28), 2),
    "mlp": ({"depth": 3, "width": 20}, (2, 1, 28, 28), 3),
    "deep_linear": ({}, (2, 10), 24),
}
#: also the networks whose norms stand inside blocks
ALL_ARMS = ARMS | {
    "residual_mlp": ({"depth": 3, "width": 20}, (2, 1, 28, 28), 3),
    "skip_init": ({"depth": 3, "width": 20, "skip_gain": 0.0}, (2, 1, 28, 28), 3),
}


def make(name, **arguments):
    return build("residual_mlp" if name == "skip_init" else name, **arguments)


#: the models whose activations are images
IMAGES = {"vgg", "digit_cnn"}


def norms_of(model):
    return [name for name, module in model.named_children() if isinstance(module, BatchNorm)]


@pytest.mark.parametrize("config", ["A", "D"])
def test_vgg_has_the_convolutions_of_torchvisions(config):
    ours, theirs = vgg(config, norm="batch"), make_layers(cfgs[config], batch_norm=True)
    convs = [m for m in theirs if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for _, m in layers(ours)[:-1]] == [m.weight.shape for m in convs]
    # torchvision keeps the biases that batch norm makes useless; ours adds a 512 x 10 classifier
    count = sum(p.numel() for p in theirs.parameters()) - sum(m.out_channels for m in convs) + 512 * 10 + 10
    assert sum(p.numel() for p in ours.parameters()) == count
    kinds = [type(m) for m in theirs]
    expected = [BatchNorm if kind is nn.BatchNorm2d else kind for kind in kinds]
    assert [type(m) for m in ours][: len(kinds)] == expected


def test_vgg_width_scales_the_channels():
    channels = [m.out_channels for _, m in layers(vgg(width=0.25))[:-1]]
    assert channels == [16, 32, 64, 64, 128, 128, 128, 128]
    assert vgg(width=1e-6).conv8.out_channels == 1


@pytest.mark.parametrize("name", ALL_ARMS)
@pytest.mark.parametrize("norm", ["none", *NORMS])
def test_shapes(name, norm):
    arguments, shape, _ = ALL_ARMS[name]
    model = make(name, norm=norm, **arguments)
    assert isinstance(model, nn.Sequential)
    if norm == "instance" and name not in IMAGES:
        with pytest.raises(ValueError, match="nothing is left"):
            model(torch.zeros(shape))
        return
    y = model(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert y.shape == (2, 10)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (8, 1), (4, 3)])
def test_digit_cnn_fits_the_image_size(size, channels):
    model = digit_cnn("batch", in_channels=channels, size=size, classes=7)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert list(dict(model.named_children())) == (
        ["conv1", "norm1", "relu1", "pool1", "conv2", "norm2", "relu2", "pool2", "flatten", "classifier"]
    )


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(0, 6), data=st.data())
def test_a_layer_has_a_bias_or_a_norm(depth, data):
    where = data.draw(st.lists(st.integers(1, depth)) if depth else st.just([]))
    model = mlp(depth, width=5, norm="batch", where=where, in_features=4, classes=3)
    assert norms_of(model) == [f"norm{i}" for i in sorted(set(where))]
    for i in range(1, depth + 1):
        assert (model.get_submodule(f"linear{i}").bias is None) == (i in where)
    assert model.classifier.bias is not None
    assert model(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("name", ARMS)
def test_where_places_the_norms(name):
    arguments, _, count = ARMS[name]
    everywhere = [f"norm{i}" for i in range(1, count + 1)]
    assert norms_of(build(name, norm="batch", **arguments)) == everywhere
    assert norms_of(build(name, norm="batch", where="nowhere", **arguments)) == []
    assert norms_of(build(name, norm="none", where=[1, 2], **arguments)) == []
    assert norms_of(build(name, norm="batch", where=(2, 1), **arguments)) == ["norm1", "norm2"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_keeps_its_bias_unless_its_mean_is_subtracted(norm):
    """Noise alone subtracts nothing; an uncentred scale feels the mean that is subtracted after all."""
    model = digit_cnn(norm=norm, size=8)
    assert (model.conv1.bias is not None) == (model.conv2.bias is not None) == (norm in KEEP_MEAN)
    assert model.classifier.bias is not None
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = model.conv1(x)
    shifted = first + torch.linspace(1, 2, 16).view(-1, 1, 1)
    outputs = []
    for value in (first, shifted):
        initialise(model, seed=0)  # the same noise for both
        outputs.append(model.norm1(value))
    assert torch.allclose(*outputs, atol=1e-4) == (norm not in KEEP_MEAN)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("norm", ["none", *NORMS])
def test_blocks_are_the_layers_with_their_norms(name, norm):
    arguments, _, _ = ARMS[name]
    model = build(name, norm=norm, where=[2], **arguments)
    names = [child for child, _ in model.named_children()]
    assert [block.layer for block in blocks(model)] == [layer for layer, _ in layers(model)]
    for block in blocks(model):
        number = block.layer.lstrip("abcdefghijklmnopqrstuvwxyz")
        normalised = norm != "none" and number == "2"
        expected = [block.layer, f"norm{number}"] if normalised else [block.layer]
        assert names[block.start : block.end] == expected


@pytest.mark.parametrize("norm", ["none", *NORMS])
def test_a_block_ends_where_the_nonlinearity_begins(norm):
    model = vgg(width=0.125, norm=norm)
    names = [name for name, _ in model.named_children()]
    ends = [names[block.end] for block in blocks(model)[:-1]]
    assert ends == [f"relu{i}" for i in range(1, 9)]
    assert blocks(model)[-1].end == len(names)


def test_a_single_norm_after_the_fourth_convolution():
    model = vgg(width=0.125, norm="batch", where=[4])
    names = [name for name, _ in model.named_children()]
    assert norms_of(model) == ["norm4"]
    assert names[names.index("conv4") :][:3] == ["conv4", "norm4", "relu4"]
    assert [name for name, m in layers(model) if m.bias is None] == ["conv4"]


def test_deep_linear_leaves_its_output_free_unless_told():
    assert "norm25" not in norms_of(deep_linear(norm="batch"))
    assert norms_of(deep_linear(norm="batch", where=[25])) == ["norm25"]
    model = deep_linear(depth=3, width=4).double()
    product = model.linear3.weight @ model.linear2.weight @ model.linear1.weight
    x = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    torch.testing.assert_close(model(x), x @ product.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("skip_gain", [None, 0.5])
def test_residual_blocks_add_what_they_compute(norm, skip_gain):
    """The network written out, with torch's own batch norm."""
    arguments = {"depth": 2, "width": 6, "in_features": 4, "classes": 3, "skip_gain": skip_gain}
    model = initialise(residual_mlp(norm=norm, **arguments), "he_normal", seed=2).double()
    weights = dict(layers(model))
    assert list(weights) == [
        "stem",
        *(f"block{k}.linear{i}" for k in (1, 2) for i in (1, 2)),
        "classifier",
    ]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)  # so that biases and the norms' parameters count
    x = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = weights["stem"](x.flatten(1))
    for block in (model.block1, model.block2):
        inner = block.linear1(h)
        if norm == "batch":
            inner = nn.functional.batch_norm(inner, None, None, block.norm1.weight, block.norm1.bias, True)
        h = h + (1.0 if skip_gain is None else 0.6) * block.linear2(torch.relu(inner))
    torch.testing.assert_close(model(x), weights["classifier"](h), rtol=1e-12, atol=1e-12)


def test_skip_init_starts_as_a_linear_classifier_and_learns_its_gains():
    model = initialise(residual_mlp(5, 8, in_features=4, skip_gain=0.0), "he_normal", seed=1)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.classifier(model.stem(x)))
    model(x).square().sum().backward()
    assert model.block3.gain.grad != 0
    assert (model.block3.linear2.weight.grad == 0).all()
    with torch.no_grad():
        model.block3.gain.add_(2)
    assert initialise(model).block3.gain == 0
    assert not any("gain" in name for name, _ in residual_mlp(5, 8, in_features=4).named_parameters())


def test_norms_stand_in_the_blocks_that_are_named():
    model = residual_mlp(4, 8, norm="batch", where=[2, 4])
    assert [n for n, m in model.named_modules() if isinstance(m, BatchNorm)] == [
        "block2.norm1",
        "block4.norm1",
    ]
    assert model.block1.linear1.bias is not None and model.block2.linear1.bias is None
    assert [block.layer for block in blocks(model)] == ["stem", "classifier"]
    with pytest.raises(ValueError, match="between 1 and 4"):
        residual_mlp(4, 8, norm="batch", where=[5])


@pytest.mark.parametrize("where", [[0], [9], [-1], [1, 12]])
def test_unknown_layer_numbers_name_the_valid_range(where):
    with pytest.raises(ValueError, match="between 1 and 8"):
        vgg(width=0.1, norm="batch", where=where)


def test_unknown_names_raise():
    for call, message in [
        (lambda: vgg(norm="batch", where="first"), '"everywhere", "nowhere" or a list'),
        (lambda: mlp(norm="layers"), "'layers'; choose one of none, batch"),
        (lambda: vgg("E"), "choose one of A, D"),
        (lambda: build("resnet"), "choose one of vgg, digit_cnn, mlp, residual_mlp, deep_linear"),
        (lambda: initialise(mlp(), "zeros"), "choose one of glorot_uniform"),
        (lambda: digit_cnn(size=3), "at least 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_new_norm_needs_one_line(monkeypatch):
    monkeypatch.setitem(models.NORMS, "new", lambda channels: nn.GroupNorm(2, channels))
    assert isinstance(digit_cnn(norm="new").norm2, nn.GroupNorm)


@pytest.mark.parametrize("name", ALL_ARMS)
@pytest.mark.parametrize("scheme", models.SCHEMES)
def test_all_arms_start_from_the_same_weights(name, scheme):
    arguments, _, _ = ALL_ARMS[name]
    arms = [("none", "everywhere"), ("batch", [2]), *((norm, "everywhere") for norm in NORMS)]
    standard, *others = [
        initialise(make(name, norm=norm, where=where, **arguments), scheme, seed=3) for norm, where in arms
    ]
    for other in others:
        for (a, ours), (b, theirs) in zip(layers(standard), layers(other), strict=True):
            assert a == b
            assert torch.equal(ours.weight, theirs.weight)


def test_initialise_depends_on_seed_and_position_only():
    def weights(model=None, **arguments):
        torch.manual_seed(arguments.get("seed", 0) + 5)
        return [m.weight for _, m in layers(initialise(model or mlp(3, 6, in_features=6), **arguments))]

    first, again, other = weights(seed=1), weights(seed=1), weights(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1]), "layers of the same shape must differ"
    deeper = weights(mlp(5, 6, in_features=6), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], deeper[:3], strict=True))
    doubled = weights(mlp(3, 6, in_features=6).double(), seed=1)
    assert all(torch.equal(a, b.float()) for a, b in zip(first, doubled, strict=True))
    last = mlp(3, 6, in_features=6).to(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(last, seed=1), strict=True))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    for name, (arguments, _, _) in ALL_ARMS.items():
        initialise(make(name, norm="batch", **arguments), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


VARIANCE = {
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
}


@pytest.mark.parametrize("scheme", models.SCHEMES)
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_variance_of_the_weights(scheme, gain):
    model = nn.Sequential(nn.Conv2d(40, 80, 3), nn.Linear(300, 200))
    assert initialise(model, scheme, gain, seed=1) is model
    for layer, fan_in, fan_out in ((model[0], 40 * 9, 80 * 9), (model[1], 300, 200)):
        w = layer.weight.detach() / gain
        variance = VARIANCE[scheme](fan_in, fan_out)
        n = w.numel()
        assert abs(w.mean()) < 5 * math.sqrt(variance / n)
        assert w.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
        bound = math.sqrt(3 * variance)
        assert (w.abs().max() <= bound * (1 + 1e-6)) == scheme.endswith("uniform")
        assert w.abs().max() > 0.99 * bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_gamma_is_where_the_norms_start():
    model = initialise(digit_cnn("batch"), seed=1, gamma=0.1)
    assert all((norm.weight == 0.1).all() for norm in (model.norm1, model.norm2))
    plain = initialise(digit_cnn("batch"), seed=1)
    assert all(
        torch.equal(a.weight, b.weight) for (_, a), (_, b) in zip(layers(model), layers(plain), strict=True)
    )


def test_initialise_makes_a_trained_model_new():
    model = digit_cnn(norm="batch")
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.ones(4, 1, 28, 28))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    initialise(model)
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.norm1.weight, torch.ones(16))


def test_activations_are_reached_by_name():
    model, seen = vgg(width=0.125, norm="batch"), {}
    model.norm4.register_forward_hook(lambda module, inputs, output: seen.update(norm4=output))
    model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert seen["norm4"].shape == (4, 32, 8, 8)
    assert seen["norm4"].min() < 0, "the ReLU after it must not overwrite it"
    torch.testing.assert_close(seen["norm4"].mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-5)
    assert [name for name, _ in layers(model)] == [f"conv{i}" for i in range(1, 9)] + ["classifier"]
