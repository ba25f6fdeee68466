// Layer normalization: each image by the mean and variance of all its own channels and pixels, with one gamma
// and beta per channel (torch.nn.GroupNorm with one group; for a dense layer, torch.nn.LayerNorm).
// `mean`, `inverse` and the sums hold one float32 per lane.
import { plus_product, spread } from "./lanes";

// So many values are summed before the sum joins the total: long float32 sums lose digits.
const BLOCK = 128;

/**
 * For each image over `count` values: its mean, and inverse = 1 / sqrt(variance + eps), the variance biased.
 */
export function sample_moments(
  y: usize,
  mean: usize,
  inverse: usize,
  count: i32,
  pixel: i32,
  eps: f32,
): void {
  const lanes: usize = <usize>pixel;
  const one = f32x4.splat(1);
  const size = f32x4.splat(<f32>count);
  const small = f32x4.splat(eps);
  for (let n: usize = 0; n < lanes; n += 16) {
    let total = f32x4.splat(0);
    for (let i = 0; i < count;) {
      let part = f32x4.splat(0);
      for (const stop = min(i + BLOCK, count); i < stop; i++) {
        part = f32x4.add(part, v128.load(y + <usize>i * lanes + n));
      }
      total = f32x4.add(total, part);
    }
    const centre = f32x4.div(total, size);
    total = f32x4.splat(0);
    for (let i = 0; i < count;) {
      let part = f32x4.splat(0);
      for (const stop = min(i + BLOCK, count); i < stop; i++) {
        const d = f32x4.sub(v128.load(y + <usize>i * lanes + n), centre);
        part = plus_product(part, d, d);
      }
      total = f32x4.add(total, part);
    }
    v128.store(mean + n, centre);
    v128.store(inverse + n, f32x4.div(one, f32x4.sqrt(f32x4.add(f32x4.div(total, size), small))));
  }
}

/** z = gamma * (y - mean) * inverse + beta, for `channels` channels of `pixels` pixels */
export function sample_normalise(
  y: usize,
  z: usize,
  mean: usize,
  inverse: usize,
  gamma: usize,
  beta: usize,
  channels: i32,
  pixels: i32,
  pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  for (let c = 0; c < channels; c++) {
    const slope = spread(gamma + ((<usize>c) << 2));
    const shift = spread(beta + ((<usize>c) << 2));
    for (let i = 0; i < pixels; i++) {
      for (let n: usize = 0; n < lanes; n += 16) {
        const hat = f32x4.mul(f32x4.sub(v128.load(y + n), v128.load(mean + n)), v128.load(inverse + n));
        v128.store(z + n, f32x4.add(f32x4.mul(hat, slope), shift));
      }
      y += lanes;
      z += lanes;
    }
  }
}

/**
 * With h = (y - mean) * inverse and e = gamma * dz:  dy = inverse * (e - mean of e - h * mean of (e * h)),
 * the means over each image's `channels` * `pixels` values. Also hats = h * dz, from whose sums per channel
 * the caller gets dgamma. `means` is room for two values per lane.
 */
export function sample_backward(
  y: usize,
  dz: usize,
  dy: usize,
  hats: usize,
  mean: usize,
  inverse: usize,
  gamma: usize,
  means: usize,
  channels: i32,
  pixels: i32,
  pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  const plane: usize = <usize>pixels * lanes;
  const size = f32x4.splat(<f32>(channels * pixels));
  for (let n: usize = 0; n < lanes; n += 16) {
    const centre = v128.load(mean + n);
    const scale = v128.load(inverse + n);
    let first = f32x4.splat(0);
    let second = first;
    for (let c = 0; c < channels; c++) {
      const slope = spread(gamma + ((<usize>c) << 2));
      const start = <usize>c * plane + n;
      for (let i = 0; i < pixels;) {
        let a = f32x4.splat(0);
        let b = a;
        for (const stop = min(i + BLOCK, pixels); i < stop; i++) {
          const at = start + <usize>i * lanes;
          const hat = f32x4.mul(f32x4.sub(v128.load(y + at), centre), scale);
          const g = v128.load(dz + at);
          const product = f32x4.mul(hat, g);
          v128.store(hats + at, product);
          a = f32x4.add(a, g);
          b = f32x4.add(b, product);
        }
        first = plus_product(first, slope, a);
        second = plus_product(second, slope, b);
      }
    }
    v128.store(means + n, f32x4.div(first, size));
    v128.store(means + lanes + n, f32x4.div(second, size));
  }
  for (let c = 0; c < channels; c++) {
    const slope = spread(gamma + ((<usize>c) << 2));
    for (let i = 0; i < pixels; i++) {
      const at = <usize>c * plane + <usize>i * lanes;
      for (let n: usize = 0; n < lanes; n += 16) {
        const scale = v128.load(inverse + n);
        const hat = f32x4.mul(f32x4.sub(v128.load(y + at + n), v128.load(mean + n)), scale);
        const own = f32x4.sub(f32x4.mul(slope, v128.load(dz + at + n)), v128.load(means + n));
        v128.store(
          dy + at + n,
          f32x4.mul(scale, f32x4.sub(own, f32x4.mul(hat, v128.load(means + lanes + n)))),
        );
      }
    }
  }
}
