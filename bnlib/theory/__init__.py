"""Theorems about one batch normalization layer as executable statements: both sides, computed.

| module | statements |
|---|---|
| `one_layer` | the projector P, gradient and Hessian through the layer, Observation 4.3's gamma and beta |
| `gradients` | Theorem 4.1; a network beside the same without the layer, naively and as in Observation 4.3 |
| `curvature` | Theorem 4.2, both forms |
| `weights` | Theorem 4.4, Wikipedia's bound on the weights' gradient, Lemma 4.5 |
| `random_networks` | the population on which the statements are counted |

Give float64: the statements are differences of large numbers.  Numbers as in Santurkar et al. 2018, whose
statements are given as printed and, where they do not hold, as they do.
"""

from bnlib.theory.curvature import Theorem42, theorem_4_2
from bnlib.theory.gradients import Comparison, Theorem41, observation_4_3, same_weights, theorem_4_1
from bnlib.theory.one_layer import gradient_through, hessian_through, matched_affine, projector
from bnlib.theory.random_networks import RandomNetwork, random_network
from bnlib.theory.weights import (
    Lemma45,
    Theorem44,
    WeightGradients,
    lemma_4_5,
    theorem_4_4,
    weight_gradients,
    worst_input,
)

__all__ = [
    "Comparison",
    "Lemma45",
    "RandomNetwork",
    "Theorem41",
    "Theorem42",
    "Theorem44",
    "WeightGradients",
    "gradient_through",
    "hessian_through",
    "lemma_4_5",
    "matched_affine",
    "observation_4_3",
    "projector",
    "random_network",
    "same_weights",
    "theorem_4_1",
    "theorem_4_2",
    "theorem_4_4",
    "weight_gradients",
    "worst_input",
]
