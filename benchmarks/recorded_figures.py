"""The figures of the book that are drawn from records, by chapter: what can be replayed without torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import altair as alt

from bnlib import charts, records
from bnlib.experiments import alternatives as declared_alternatives
from bnlib.explorables import (
    alternatives,
    batches,
    directions,
    distributions,
    effect,
    explosion,
    gradients,
    ingredients,
    landscape,
    lp,
    mechanics,
    noise,
    one_layer,
    scale,
    surfaces,
)
from bnlib.widgets import Explorer

# What a chapter draws of networks that it trains or predicts before the reader's eyes: that needs torch.
LIVE = {
    "mechanics.channel_chart",
    "distributions.motion_and_loss",
    "explosion.signal",
    "explosion.rates_chart",
    "directions.plane",
    "batches.images_chart",
}

load = functools.cache(records.load)


def specs(chapter: str) -> Iterator[dict]:
    """The Vega-Lite specs of a chapter's recorded figures, one after the other, in the book's theme."""
    for figure in FIGURES[chapter]():
        if isinstance(figure, alt.TopLevelMixin):
            with alt.theme.enable("bnlib"):
                yield figure.to_dict()
        else:
            (explorer,) = (child for child in figure.children if isinstance(child, Explorer))
            yield explorer.spec


def _mechanics() -> Iterator[Any]:
    yield mechanics.transform_steps()
    yield mechanics.coupling()
    yield mechanics.running_statistics()


def _effect() -> Iterator[Any]:
    names = ("training", "replication", "mnist")
    settings = [setting for name in names for setting in effect.settings_of(name, load(name))]
    yield effect.learning_curves(settings)
    yield effect.steps_to_level(settings)
    yield effect.robustness_map(load("robustness"))


def _distributions() -> Iterator[Any]:
    settings = load("distributions").runs[0]["settings"]["probes"]["activation_shift"]
    layers = {layer: layer for layer in sorted(settings["layers"], key=lambda name: int(name[4:]))}
    yield distributions.channel_bands(load("distributions"), layers)
    yield distributions.ridge_grid(load("distributions"), layers)
    yield distributions.moving_histograms(
        [distributions.Place(layer, load("distributions"), layer) for layer in layers]
    )
    yield distributions.wasserstein_toy()


def _noise() -> Iterator[Any]:
    yield noise.standing_chart(load("noise"))
    yield noise.moments_over_time(load("noise"))
    yield noise.grouped_dots_chart(noise.accuracies(load("noise")), y_title="Accuracy (%)")
    yield noise.dose_and_accuracy(load("noise_strength"))


def _gradients() -> Iterator[Any]:
    both = {"VGG": load("gradient_shift"), "Linear": load("gradient_shift_linear")}
    yield from (gradients.equal_rate(record, name) for name, record in both.items())
    yield from (gradients.grid_chart(record, name) for name, record in both.items())
    yield gradients.step_ratio_chart(both)
    yield gradients.sensitivity([gradients.Grid(name, record) for name, record in both.items()])
    yield gradients.shift_and_loss_chart(both)


def _surfaces() -> Iterator[Any]:
    record = load("surfaces")
    yield surfaces.spread_chart(record)
    yield surfaces.lines(record, "VGG")
    yield surfaces.stale_chart(record, surfaces.pairs_of(record)[0], y_domain=(0, 3))
    yield surfaces.planes(record, "VGG")
    yield surfaces.walks(record, "VGG")
    yield surfaces.gain_chart(record, "end_loss", "Final training loss (nats)")
    yield surfaces.bowl()


def _landscape() -> Iterator[Any]:
    both = {"VGG": load("landscape"), "Linear": load("landscape_linear")}
    yield from (landscape.profile(record, name) for name, record in both.items())
    yield landscape.over_training(both)
    yield landscape.side_by_side(both["VGG"], "VGG")
    yield landscape.beta_chart(both)
    yield landscape.beta_ratio_chart(both)
    yield landscape.loss_scatter(both["VGG"], "VGG")
    yield landscape.activation_chart(both["VGG"])
    yield landscape.version_chart(both["VGG"])


def _lp() -> Iterator[Any]:
    record = load("lp_norms")
    moved = record.frame(metric="wasserstein").rename(columns={"layer": "group"})
    pixels = dict.fromkeys(noise.layers_of(record), 1)
    yield lp.arms_over_training(record)
    yield lp.final_shapes(record)
    yield lp.grouped_dots_chart(moved[moved["step"] == moved["step"].max()], y_title="Movement (W₁)")
    yield lp.recorded_scales(record, pixels)
    yield lp.over_standard_chart(record)
    yield lp.over_standard_chart(record, relative=True)
    yield lp.scale_and_variance()


def _one_layer() -> Iterator[Any]:
    record = load("one_layer")
    ratios = {name: f"pairs_{name}_ratio" for name in ("same", "matched", "weights")}
    yield one_layer.terms(record, "VGG")
    yield one_layer.removed_chart(record)
    yield one_layer.by_layer_chart(
        one_layer.removed(record), {"bn": charts.ARMS["bn"]}, y_title="Removed (%)"
    )
    yield one_layer.by_layer_chart(one_layer.pairs(record, ratios), one_layer.PAIRS, y_title="Times")
    yield one_layer.by_layer_chart(one_layer.ways(load("surfaces")), one_layer.WAYS, y_title="Distance")
    yield one_layer.ray()


def _explosion() -> Iterator[Any]:
    yield explosion.training(load("depth_trainability"), "fully connected networks")
    yield explosion.first_steps(load("depth_trainability"), "fully connected networks")


def _directions() -> Iterator[Any]:
    yield directions.gap_by_step(load("least_squares"))
    yield directions.rates_chart(load("least_squares"))
    yield directions.rayleigh_chart(load("least_squares"))
    yield directions.hidden(load("one_hidden_layer"))


def _scale() -> Iterator[Any]:
    kinds = list(scale.KINDS)[:6]
    yield scale.kinds_chart(load("effective_rate"), "effective_rate", kinds, y_title="Effective rate")
    yield scale.angle_chart(load("effective_rate"))
    yield scale.rates_chart(load("any_rate"), "train_loss", "Final training loss (nats)")
    yield scale.spectra(load("spectrum"), "VGG")
    yield scale.outliers_chart(load("spectrum"), relative=False)
    yield scale.depth_chart(load("depth_curvature"))
    yield scale.edge(load("edge"), "a small network")
    yield scale.toy()


def _batches() -> Iterator[Any]:
    nets = {"Fully connected": load("batch_size"), "VGG": load("batch_size_vgg")}
    yield batches.sizes(nets)
    yield batches.modes_chart(nets)
    yield batches.shifts(load("domain_shift"), "VGG")
    yield batches.parts_chart(load("bn_only"))
    yield batches.scales_chart(load("bn_only"))
    yield batches.rank_chart(load("rank"))
    yield batches.normalised()


def _alternatives() -> Iterator[Any]:
    shown = ["standard", "bn", "layer", "group", "weight"]
    plain = [arm for arm in declared_alternatives.DEEP if arm in declared_alternatives.NORMS]
    nets, deep = load("alternatives"), load("alternatives_depth")
    yield alternatives.invariances(load("invariances"))
    yield alternatives.comparison(nets, deep)
    yield charts.curves(alternatives.losses(nets, shown), y_title="Training loss (nats)")
    yield noise.grouped_dots_chart(alternatives.by_depth(deep, plain), y_title="Test accuracy (%)")
    yield alternatives.averages()


def _ingredients() -> Iterator[Any]:
    for name in ("ingredients", "ingredients_deep"):
        yield noise.grouped_dots_chart(ingredients.by_rate(load(name)), y_title="Test accuracy (%)")
    compared = {name: load(name) for name in ingredients.COMPARED}
    yield ingredients.behind_batch_norm_chart(ingredients.behind_batch_norm(compared))


FIGURES: dict[str, Callable[[], Iterator[Any]]] = {
    "01-mechanics": _mechanics,
    "02-does-it-work": _effect,
    "03-moving-distributions": _distributions,
    "04-noisy-bn": _noise,
    "05-changing-gradients": _gradients,
    "06-error-surfaces": _surfaces,
    "07-along-the-gradient": _landscape,
    "08-lp-normalization": _lp,
    "09-one-layer-proved": _one_layer,
    "10-exploding-gradients": _explosion,
    "11-length-and-direction": _directions,
    "12-scale-and-spectrum": _scale,
    "13-small-batches": _batches,
    "14-alternatives": _alternatives,
    "15-why-it-works": _ingredients,
}
