// What the module exports: one file per room. Every function has a twin of the same name, arguments and bits
// in ../src/plain.js, which runs where WebAssembly is missing; ../src/network.js calls either.
//
// Layout. An activation of C channels and H x W pixels for a batch of N images lies as [C][H][W][N], the
// batch innermost, as float32. So every kernel is a loop over contiguous lanes, and all values of a channel
// are contiguous. N is rounded up to a multiple of LANES = 8; the lanes beyond the batch are zero, in
// activations and in gradients, so they add nothing to any sum. Pointers are byte offsets, "bytes" are
// lengths in bytes. Only what a convolution reads lies as [H][W][C][N], with a border: see ./conv.ts.
//
// No relaxed SIMD and no fused multiply-add: every operation is rounded as IEEE 754 says, on every machine.

export { correlate, weight_gradient, add_border } from "./conv";
export { relu, relu_backward, relu_pool, relu_pool_backward } from "./pool";
export {
  clear_padding,
  sum,
  sum_squared_deviations,
  sum_centred_products,
  sum_abs,
  max_abs,
  count_abs,
  histogram,
} from "./reductions";
export { affine, combine, combine_sign, combine_peak, multiply } from "./channels";
export { sample_moments, sample_normalise, sample_backward } from "./samples";
export { disturb, disturb_again } from "./noise";
export { sgd } from "./optimiser";
export { step_along, squared_distance } from "./vectors";
