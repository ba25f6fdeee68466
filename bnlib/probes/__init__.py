"""What is measured on a network: one function per quantity.  A probe leaves no trace.

Every probe takes a `training.State` and yields (layer, metric, value).  Layers are named as in
`models.layers`.  A value that cannot be formed, or is not finite, is left out.
"""

from bnlib.probes.activations import activation_histogram, activation_moments, activation_shift
from bnlib.probes.evaluation import evaluation, training_mode_accuracy
from bnlib.probes.shift import covariate_shift, matched_covariate_shift
from bnlib.probes.tracing import evaluating, no_trace

#: what a declared run can name; `evaluation` is declared by its own setting, `eval_every`
PROBES = {
    probe.__name__: probe
    for probe in (
        activation_moments,
        activation_histogram,
        activation_shift,
        covariate_shift,
        matched_covariate_shift,
        training_mode_accuracy,
    )
}

__all__ = ["PROBES", *PROBES, "evaluating", "evaluation", "no_trace"]
