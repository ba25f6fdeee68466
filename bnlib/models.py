"""The networks: VGG, digit CNN, MLP, residual MLP, deep linear net; the normalization is an argument.

A model is a plain `nn.Sequential` whose layers have readable names: `model.conv4`, `model.norm4`,
`model.relu4`. `norm` names what follows a layer ("none" or one of `NORMS`), `where` after which layers:
"everywhere", "nowhere" or a list of layer numbers, counted from 1. A layer whose mean is subtracted again has
no bias: the bias would have no effect, its gradient is exactly zero. The norms in `OF_WEIGHTS` change the
layer itself instead.

Models come initialised (Glorot uniform, seed 0) and neither read nor change torch's global random state.
`initialise` draws other weights; they depend on the seed and on the position and shape of each convolution or
linear layer, never on the normalization, so that the arms of an experiment start from the same weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bnlib.alternative_norms import (
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    weight_normalised,
)
from bnlib.lp_norms import LpNorm
from bnlib.noise import NonStationaryNoise, StationaryNoise
from bnlib.norms import BatchNorm, DetachedBatchNorm

#: name -> what makes the layer for a number of channels
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm,
    "detached_batch": DetachedBatchNorm,
    "noisy_batch": lambda channels: nn.Sequential(BatchNorm(channels), NonStationaryNoise(channels)),
    "stationary_noise_batch": lambda channels: nn.Sequential(BatchNorm(channels), StationaryNoise(channels)),
    "noise": NonStationaryNoise,  # no normalization at all: the control of noisy batch norm
    "l1": lambda channels: LpNorm(channels, 1),
    "l2": lambda channels: LpNorm(channels, 2),
    "linf": lambda channels: LpNorm(channels, math.inf),
    "l1_centred": lambda channels: LpNorm(channels, 1, centred=True),
    "l2_centred": lambda channels: LpNorm(channels, 2, centred=True),  # batch norm, written another way
    "linf_centred": lambda channels: LpNorm(channels, math.inf, centred=True),
    "layer": LayerNorm,
    "instance": InstanceNorm,  # for images only
    "group": GroupNorm,
    "rms": RMSNorm,
    "batch_renorm": BatchRenorm,
}
#: the norms that do not subtract the channel's own mean, or whose scale depends on it, so that the layer
#: before them keeps its bias
KEEP_MEAN = {"noise", "l1", "l2", "linf", "layer", "group", "rms"}
#: normalizations of a layer's weights: name -> what changes the layer; nothing follows it, its bias stays
OF_WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {"weight": weight_normalised}

#: channels of each 3x3 convolution; "M" is a 2x2 max pooling (Simonyan and Zisserman 2015, table 1)
VGG: dict[str, tuple[int | str, ...]] = {
    "A": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "D": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}

Where = str | Sequence[int]


def vgg(
    config: str = "A",
    width: float = 1.0,
    norm: str = "none",
    where: Where = "everywhere",
    in_channels: int = 3,
    classes: int = 10,
) -> nn.Sequential:
    """VGG-like network for 32x32 images: 8 ("A") or 13 ("D") 3x3 convolutions, five poolings, a linear layer.

    (N, in_channels, 32, 32) -> (N, classes). After each convolution come [norm] and ReLU: conv1, norm1,
    relu1, pool1, conv2, ... `width` multiplies the channels (0.25: 16 to 128). "VGG-like", because papers
    that use it on CIFAR-10 do not print their classifier; ours is a single linear layer on the 1x1 map that
    is left after the last pooling. Raises ValueError for an unknown `config`, `norm` or layer number.
    Source: Simonyan and Zisserman 2015, table 1.
    """
    if config not in VGG:
        raise ValueError(f"Unknown VGG configuration {config!r}; choose one of {', '.join(VGG)}.")
    plan = [c if c == "M" else max(1, round(c * width)) for c in VGG[config]]
    places = _places(norm, where, sum(c != "M" for c in plan))
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    conv = pool = 0
    for c in plan:
        if c == "M":
            pool += 1
            parts[f"pool{pool}"] = nn.MaxPool2d(2)
        else:
            conv += 1
            parts |= _block("conv", conv, in_channels, c, norm, conv in places, nn.ReLU())
            in_channels = c
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = _linear(in_channels, classes)
    return initialise(nn.Sequential(parts))


def digit_cnn(
    norm: str = "none",
    where: Where = "everywhere",
    in_channels: int = 1,
    size: int = 28,
    width: int = 16,
    classes: int = 10,
) -> nn.Sequential:
    """Small network for digits: (3x3 convolution, [norm], ReLU, 2x2 pooling) twice, then one linear layer.

    (N, in_channels, size, size) -> (N, classes); `width` channels, then twice as many. 28 for MNIST, 8 for
    scikit-learn's digits. Raises ValueError for size < 4, an unknown `norm` or layer number.
    """
    if size < 4:
        raise ValueError(f"digit_cnn halves the image twice, so size must be at least 4, not {size}.")
    places = _places(norm, where, 2)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, c in ((1, width), (2, 2 * width)):
        parts |= _block("conv", i, in_channels, c, norm, i in places, nn.ReLU())
        parts[f"pool{i}"] = nn.MaxPool2d(2)
        in_channels = c
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = _linear(in_channels * (size // 4) ** 2, classes)
    return initialise(nn.Sequential(parts))


def mlp(
    depth: int = 2,
    width: int = 128,
    norm: str = "none",
    where: Where = "everywhere",
    in_features: int = 784,
    classes: int = 10,
) -> nn.Sequential:
    """Fully connected network: `depth` hidden layers of `width` units (linear, [norm], ReLU), a linear layer.

    (N, ...) with in_features values per sample -> (N, classes). `where` counts the hidden layers; depth = 0
    is a linear classifier. Raises ValueError for an unknown `norm` or layer number.
    """
    places = _places(norm, where, depth)
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, depth + 1):
        parts |= _block("linear", i, in_features, width, norm, i in places, nn.ReLU())
        in_features = width
    parts["classifier"] = _linear(in_features, classes)
    return initialise(nn.Sequential(parts))


class ResidualBlock(nn.Sequential):
    r"""$x+a\,f(x)$, f being the block's modules in turn.

    `gain` is a: None means 1, fixed; a number makes it a parameter of the block, a scalar that starts there.
    """

    def __init__(self, parts: OrderedDict[str, nn.Module], gain: float | None = None) -> None:
        super().__init__(parts)
        self.start = gain
        self.gain = None if gain is None else nn.Parameter(torch.tensor(float(gain)))

    def reset_gain(self) -> None:
        """Set the gain back to where it starts."""
        if self.gain is not None:
            self.gain.fill_(self.start)

    def forward(self, x: Tensor) -> Tensor:
        branch = super().forward(x)
        return x + (branch if self.gain is None else self.gain * branch)


def residual_mlp(
    depth: int = 10,
    width: int = 128,
    norm: str = "none",
    where: Where = "everywhere",
    in_features: int = 784,
    classes: int = 10,
    skip_gain: float | None = None,
) -> nn.Sequential:
    r"""Fully connected network with skip connections: a linear stem, `depth` blocks, a linear classifier.

    $$x^{k+1}=x^k+a\,W_2^k\,\operatorname{relu}(\operatorname{norm}(W_1^kx^k))$$

    (N, ...) with in_features values per sample -> (N, classes).  Pre-activation: the sum passes from block to
    block untouched, and W_2 is not followed by a norm.  `where` counts the blocks.  `skip_gain` is a: None
    for 1, fixed; a number for a learned scalar of each block that starts there.  0 is SkipInit: the network
    starts as its stem and classifier.  Layers are called block1.linear1, block1.linear2, ...; they have no
    position in the model, so `blocks` lists stem and classifier only.  Raises ValueError for an unknown
    `norm` or block number.  Sources: He et al. 2016 for the blocks; De and Smith 2020 for SkipInit.
    """
    places = _places(norm, where, depth)
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    parts["stem"] = _linear(in_features, width)
    for k in range(1, depth + 1):
        branch = _block("linear", 1, width, width, norm, k in places, nn.ReLU())
        branch["linear2"] = _linear(width, width)
        parts[f"block{k}"] = ResidualBlock(OrderedDict(branch), skip_gain)
    parts["classifier"] = _linear(width, classes)
    return initialise(nn.Sequential(parts))


def deep_linear(
    depth: int = 25, width: int = 10, norm: str = "none", where: Where = "everywhere"
) -> nn.Sequential:
    """Deep linear network: `depth` square linear layers without bias, no nonlinearity.

    (N, width) -> (N, width). "everywhere" means after all layers but the last, so that the output stays free.
    The source does not say whether it normalises the last layer, so a list may also name that one. Raises
    ValueError for an unknown `norm` or layer number. Source: Santurkar et al. 2018, the deep linear network
    with 25 layers of 10 x 10.
    """
    if where == "everywhere":
        where = range(1, depth)
    places = _places(norm, where, depth)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        parts[f"linear{i}"] = _linear(width, width, bias=False)
        if i in places and norm in OF_WEIGHTS:
            OF_WEIGHTS[norm](parts[f"linear{i}"])
        elif i in places:
            parts[f"norm{i}"] = NORMS[norm](width)
    return initialise(nn.Sequential(parts))


def build(name: str, **settings) -> nn.Sequential:
    """The model `name`, a function of this module, with its arguments; ValueError if there is none."""
    models = {
        "vgg": vgg,
        "digit_cnn": digit_cnn,
        "mlp": mlp,
        "residual_mlp": residual_mlp,
        "deep_linear": deep_linear,
    }
    if name not in models:
        raise ValueError(f"Unknown model {name!r}; choose one of {', '.join(models)}.")
    return models[name](**settings)


def layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Name and module of every convolution and linear layer, from input to output."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


class Block(NamedTuple):
    """A convolution or linear layer with the norm after it, as positions in the model.

    `model[:start]` computes the layer's input, `model[:end]` what the layer passes on to its nonlinearity.
    """

    layer: str
    start: int
    end: int


def blocks(model: nn.Sequential) -> list[Block]:
    """Every layer with its norm, from input to output; names as in `layers`.  Those inside a residual block
    have no position in the model and are not listed."""
    names, found = [name for name, _ in model.named_children()], []
    weighted = {name for name, _ in layers(model)}
    for position, name in enumerate(names):
        if name in weighted:
            normalised = names[position + 1 : position + 2] and names[position + 1].startswith("norm")
            found.append(Block(name, position, position + (2 if normalised else 1)))
    return found


#: scheme -> (distribution, variance of a weight from its fan-in and fan-out)
SCHEMES: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "glorot_uniform": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "glorot_normal": ("normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "he_uniform": ("uniform", lambda fan_in, fan_out: 2 / fan_in),
    "he_normal": ("normal", lambda fan_in, fan_out: 2 / fan_in),
}


@torch.no_grad()
def initialise(
    model: nn.Module,
    scheme: str = "glorot_uniform",
    gain: float = 1.0,
    seed: int = 0,
    gamma: float = 1.0,
    noise: float = 1.0,
) -> nn.Module:
    r"""Draw the weights of every convolution and linear layer, in place; returns the model.

    $$\operatorname{Var} W=\text{gain}^2\cdot\frac{2}{\text{fan in}+\text{fan out}}\ \text{(Glorot)},\qquad
    \text{gain}^2\cdot\frac{2}{\text{fan in}}\ \text{(He)}$$

    A convolution's fans count its window: fan in = in channels * kernel height * kernel width. Biases and the
    norms' beta become 0, their scale becomes `gamma`, running statistics and a residual block's gain as new.
    Noise gets the strength `noise` and a random stream from `seed` and its position. Weights depend only on
    `seed`, on the layer's position in `layers(model)` and on its shape; they are drawn in float64, so they
    agree across dtypes and devices up to rounding. Raises ValueError for an unknown scheme.

    "fixup" is for residual networks without normalization: He normal, then each branch's first layer divided
    by the square root of the number of blocks, its last layer and the classifier 0. So the network starts as
    the zero function, and a step moves its output by as much as that of a shallow one. The source's extra
    scalar biases and multipliers are left out. ValueError if there is no residual block.
    Sources: Glorot and Bengio 2010; He et al. 2015; Zhang, Dauphin and Ma 2019, section 3 (fixup).
    """
    fixup = scheme == "fixup"
    if not fixup and scheme not in SCHEMES:
        raise ValueError(f"Unknown initialisation {scheme!r}; choose one of {', '.join(SCHEMES)}, fixup.")
    distribution, variance = SCHEMES["he_normal" if fixup else scheme]
    for module in model.modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            module.weight.fill_(gamma)  # of the convolutions and linear layers: drawn below
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
        if hasattr(module, "reset_gain"):
            module.reset_gain()
    for position, (_, layer) in enumerate(layers(model)):
        window = layer.weight[0, 0].numel()
        fan_in, fan_out = layer.weight.shape[1] * window, layer.weight.shape[0] * window
        std = gain * math.sqrt(variance(fan_in, fan_out))
        weight = std * _standard(distribution, layer.weight.shape, seed, position)
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = weight.to(layer.weight)  # sets the parameters that the weight is computed from
        else:
            layer.weight.copy_(weight)
    if fixup:
        _fixup(model)
    noisy = [module for module in model.modules() if hasattr(module, "reseed")]
    for position, module in enumerate(noisy):
        module.strength = noise
        # A key of its own: the noise must not repeat the stream of the weights at the same position.
        module.reseed(int(np.random.SeedSequence((seed, position), spawn_key=(1,)).generate_state(1)[0]))
    return model


@torch.no_grad()
def normalise_start(model: nn.Module, x: Tensor) -> nn.Module:
    r"""Normalise once, before training: every layer but the last gets weights and bias with which its outputs
    on the images `x` have mean 0 and variance 1, in place; returns the model.

    $$W_c\leftarrow W_c/\sigma_c,\quad b_c\leftarrow(b_c-\mu_c)/\sigma_c$$

    with each channel's mean and biased variance over `x`, (N, ...), and its pixels, one layer after the other
    from the input on.  It is what batch norm would make of `x`, and nothing is left of it but the numbers.
    For networks without normalization: ValueError if a layer has no bias, or a channel does not vary.
    Sources: Mishkin and Matas 2016; Kraehenbuehl et al. 2016.
    """
    for name, layer in layers(model)[:-1]:
        if layer.bias is None:
            raise ValueError(f"{name} has no bias, as before a norm: normalise a network without one.")
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda layer, x, y, seen=seen: seen.append(y))
        try:
            model(x)
        finally:
            hook.remove()
        over = (0, *range(2, seen[0].ndim))
        var, mean = torch.var_mean(seen[0], over, correction=0)
        if not (var > 0).all():
            raise ValueError(f"A channel of {name} is the same for all images: take more or other images.")
        std = var.sqrt()
        layer.weight /= std.view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.sub_(mean).div_(std)
    return model


def _fixup(model: nn.Module) -> None:
    residual = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    if not residual:
        raise ValueError('The initialisation "fixup" is for residual networks; this one has no block.')
    for block in residual:
        block.linear1.weight /= math.sqrt(len(residual))
        block.linear2.weight.zero_()
    model.classifier.weight.zero_()


def _standard(distribution: str, shape: torch.Size, seed: int, position: int) -> Tensor:
    """Samples with mean 0 and variance 1 from a random stream of their own for (seed, position)."""
    stream = np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(stream[0]))
    if distribution == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return math.sqrt(3) * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def _places(norm: str, where: Where, count: int) -> set[int]:
    """The numbers of the layers that a normalization follows."""
    if norm not in ("none", *NORMS, *OF_WEIGHTS):
        raise ValueError(f"Unknown norm {norm!r}; choose one of none, {', '.join((*NORMS, *OF_WEIGHTS))}.")
    if isinstance(where, str) and where not in ("everywhere", "nowhere"):
        raise ValueError(f'where must be "everywhere", "nowhere" or a list of layer numbers, not {where!r}.')
    if where == "everywhere":
        where = range(1, count + 1)
    elif where == "nowhere":
        where = ()
    if not set(where) <= set(range(1, count + 1)):
        raise ValueError(f"where must name layers between 1 and {count} of this model, not {list(where)}.")
    return set() if norm == "none" else set(where)


def _block(
    kind: str, i: int, fan_in: int, out: int, norm: str, normalised: bool, activation: nn.Module
) -> dict[str, nn.Module]:
    """Layer number i with its [norm] and activation, named."""
    make = _conv if kind == "conv" else _linear
    of_weights = normalised and norm in OF_WEIGHTS
    layer = make(fan_in, out, bias=not normalised or of_weights or norm in KEEP_MEAN)
    block = {f"{kind}{i}": OF_WEIGHTS[norm](layer) if of_weights else layer}
    if normalised and not of_weights:
        block[f"norm{i}"] = NORMS[norm](out)
    return block | {f"relu{i}": activation}


# skip_init: torch's own initialisation would draw from the global random state, and ours follows anyway.
def _conv(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, 3, padding=1, bias=bias)


def _linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)
