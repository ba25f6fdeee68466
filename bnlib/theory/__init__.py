"""Theorems about batch normalization as executable statements: both sides, computed.

| module | statements |
|---|---|
| `one_layer` | the projector P, gradient and Hessian through the layer, Observation 4.3's gamma and beta |
| `gradients` | Theorem 4.1; a network beside the same without the layer, naively and as in Observation 4.3 |
| `curvature` | Theorem 4.2, both forms |
| `weights` | Theorem 4.4, Wikipedia's bound on the weights' gradient, Lemma 4.5 |
| `random_networks` | the population on which the statements are counted |
| `mean_field` | growth of gradients in wide random networks: lambda(B, phi), layer norm, skip connections |
| `wide_networks` | the same measured on random networks; rank collapse |
| `least_squares` | least squares through a unit as a Rayleigh quotient; its rates; any learning rate |
| `rayleigh` | the generalised quotient and the rate of Knyazev and Neymeyr |
| `halfspaces` | learning halfspaces with Gaussian inputs; GDNP |
| `one_hidden_layer` | critical points of a hidden layer on one line |
| `scale_invariance` | scale identities, weight decay as learning rates, equilibrium |
| `lanczos` | a spectrum from products of matrix and vector |
| `small_batches` | what few values leave of a distribution |

Give float64: the statements are differences of large numbers.  The first four rows are about one layer and
numbered as in Santurkar et al. 2018, whose statements are given as printed and, where they do not hold, as
they do.
"""

from bnlib.theory.curvature import Theorem42, theorem_4_2
from bnlib.theory.gradients import Comparison, Theorem41, observation_4_3, same_weights, theorem_4_1
from bnlib.theory.halfspaces import (
    SIGMOID,
    SOFTPLUS,
    SQUARE,
    Gaussian,
    Halfspace,
    Sample,
    gdnp,
    logistic_optimum,
)
from bnlib.theory.least_squares import LeastSquares, train_both
from bnlib.theory.mean_field import (
    growth_rate,
    layer_norm_growth_rate,
    linear_growth_rate,
    relu_growth_rate,
    residual_growth,
    residual_start,
)
from bnlib.theory.one_hidden_layer import OneHiddenLayer
from bnlib.theory.one_layer import gradient_through, hessian_through, matched_affine, projector
from bnlib.theory.random_networks import RandomNetwork, random_network
from bnlib.theory.rayleigh import RayleighQuotient
from bnlib.theory.scale_invariance import (
    decay_as_rates,
    descend,
    effective_rates,
    equilibrium,
    exponential_rates,
    radial_gradient,
    random_walk,
    scale_identities,
    squared_norms_after,
)
from bnlib.theory.small_batches import (
    farthest,
    gaussian_batch,
    normalised_batches,
    normalised_density,
    samuelson_bound,
)
from bnlib.theory.weights import (
    Lemma45,
    Theorem44,
    WeightGradients,
    lemma_4_5,
    theorem_4_4,
    weight_gradients,
    worst_input,
)
from bnlib.theory.wide_networks import (
    Layers,
    measured_exponent,
    measured_rate,
    plain_network,
    rank_collapse,
    residual_network,
    soft_rank,
)

__all__ = [
    "SIGMOID",
    "SOFTPLUS",
    "SQUARE",
    "Comparison",
    "Gaussian",
    "Halfspace",
    "Layers",
    "LeastSquares",
    "Lemma45",
    "OneHiddenLayer",
    "RandomNetwork",
    "RayleighQuotient",
    "Sample",
    "Theorem41",
    "Theorem42",
    "Theorem44",
    "WeightGradients",
    "decay_as_rates",
    "descend",
    "effective_rates",
    "equilibrium",
    "exponential_rates",
    "farthest",
    "gaussian_batch",
    "gdnp",
    "gradient_through",
    "growth_rate",
    "hessian_through",
    "layer_norm_growth_rate",
    "lemma_4_5",
    "linear_growth_rate",
    "logistic_optimum",
    "matched_affine",
    "measured_exponent",
    "measured_rate",
    "normalised_batches",
    "normalised_density",
    "observation_4_3",
    "plain_network",
    "projector",
    "radial_gradient",
    "random_network",
    "random_walk",
    "rank_collapse",
    "relu_growth_rate",
    "residual_growth",
    "residual_network",
    "residual_start",
    "same_weights",
    "samuelson_bound",
    "scale_identities",
    "soft_rank",
    "squared_norms_after",
    "theorem_4_1",
    "theorem_4_2",
    "theorem_4_4",
    "train_both",
    "weight_gradients",
    "worst_input",
]
