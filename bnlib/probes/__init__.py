"""What is measured on a network: one function per quantity.  A probe leaves no trace.

Every probe takes a `State` and yields (layer, metric, value).  Layers are named as in
`models.layers`.  A value that cannot be formed, or is not finite, is left out.
"""

from bnlib.probes.activations import activation_histogram, activation_moments, activation_shift
from bnlib.probes.curvature import curvature_terms
from bnlib.probes.evaluation import evaluation, training_mode_accuracy
from bnlib.probes.landscape import (
    activation_beta,
    landscape,
    landscape_mistakes,
    relative_landscape,
)
from bnlib.probes.one_layer import batch_norm_gradients, batch_norm_terms
from bnlib.probes.pairs import one_layer_pairs
from bnlib.probes.scales import lp_scales
from bnlib.probes.shift import covariate_shift, matched_covariate_shift
from bnlib.probes.slices import random_slice
from bnlib.probes.spectrum import hessian_spectrum, relative_spectrum
from bnlib.probes.statistics import gammas, shifted_accuracy, two_modes
from bnlib.probes.tracing import evaluating, no_trace
from bnlib.probes.turning import turning
from bnlib.probes.weight_gradients import weight_gradients

#: what a declared run can name; `evaluation` is declared by its own setting, `eval_every`
PROBES = {
    probe.__name__: probe
    for probe in (
        activation_moments,
        activation_histogram,
        activation_shift,
        covariate_shift,
        matched_covariate_shift,
        batch_norm_terms,
        training_mode_accuracy,
        landscape,
        relative_landscape,
        activation_beta,
        landscape_mistakes,
        random_slice,
        lp_scales,
        one_layer_pairs,
        curvature_terms,
        hessian_spectrum,
        relative_spectrum,
        weight_gradients,
        two_modes,
        shifted_accuracy,
        gammas,
        turning,
    )
}

__all__ = ["PROBES", *PROBES, "batch_norm_gradients", "evaluating", "evaluation", "no_trace"]
