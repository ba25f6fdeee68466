// Sums over all values of a channel. Eight float32 sums run side by side for up to BLOCK bytes, then their
// total goes to a float64: as exact as the float32 values deserve, and always in the same order.
import { across, plus_product } from "./lanes";

const BLOCK: usize = 4096;

/** Zero the lanes beyond the batch in `pixels` pixels: `batch` of the `lanes` float32 of each are images. */
export function clear_padding(p: usize, pixels: i32, batch: i32, lanes: i32): void {
  for (let i = 0; i < pixels; i++) {
    memory.fill(p + ((<usize>batch) << 2), 0, (<usize>(lanes - batch)) << 2);
    p += (<usize>lanes) << 2;
  }
}

/** sum of x */
export function sum(x: usize, bytes: i32): f64 {
  let total: f64 = 0;
  for (let end = x + <usize>bytes; x < end;) {
    const stop = min(x + BLOCK, end);
    let a = f32x4.splat(0);
    let b = a;
    for (; x < stop; x += 32) {
      a = f32x4.add(a, v128.load(x));
      b = f32x4.add(b, v128.load(x, 16));
    }
    total += <f64>across(f32x4.add(a, b));
  }
  return total;
}

/**
 * sum of (x - mean)^2 over `rows` rows of `count` values, which start `stride` values apart. Rows, because a
 * lane beyond the batch is zero and so deviates from the mean.
 */
export function sum_squared_deviations(x: usize, rows: i32, count: i32, stride: i32, mean: f32): f64 {
  const centre = f32x4.splat(mean);
  const full: usize = (<usize>(count & ~7)) << 2;
  let total: f64 = 0;
  for (let r = 0; r < rows; r++) {
    let p = x + <usize>r * ((<usize>stride) << 2);
    const rest = p + ((<usize>count) << 2);
    for (const end = p + full; p < end;) {
      const stop = min(p + BLOCK, end);
      let a = f32x4.splat(0);
      let b = a;
      for (; p < stop; p += 32) {
        const d = f32x4.sub(v128.load(p), centre);
        const e = f32x4.sub(v128.load(p, 16), centre);
        a = plus_product(a, d, d);
        b = plus_product(b, e, e);
      }
      total += <f64>across(f32x4.add(a, b));
    }
    for (; p < rest; p += 4) {
      const d = load<f32>(p) - mean;
      total += <f64>(d * d);
    }
  }
  return total;
}

/** sum of g * (x - mean) */
export function sum_centred_products(g: usize, x: usize, bytes: i32, mean: f32): f64 {
  const centre = f32x4.splat(mean);
  let total: f64 = 0;
  for (let end = x + <usize>bytes; x < end;) {
    const stop = min(x + BLOCK, end);
    let a = f32x4.splat(0);
    let b = a;
    for (; x < stop; x += 32) {
      a = plus_product(a, v128.load(g), f32x4.sub(v128.load(x), centre));
      b = plus_product(b, v128.load(g, 16), f32x4.sub(v128.load(x, 16), centre));
      g += 32;
    }
    total += <f64>across(f32x4.add(a, b));
  }
  return total;
}

/** sum of |x| */
export function sum_abs(x: usize, bytes: i32): f64 {
  let total: f64 = 0;
  for (let end = x + <usize>bytes; x < end;) {
    const stop = min(x + BLOCK, end);
    let a = f32x4.splat(0);
    let b = a;
    for (; x < stop; x += 32) {
      a = f32x4.add(a, f32x4.abs(v128.load(x)));
      b = f32x4.add(b, f32x4.abs(v128.load(x, 16)));
    }
    total += <f64>across(f32x4.add(a, b));
  }
  return total;
}

/** the largest |x| */
export function max_abs(x: usize, bytes: i32): f32 {
  let a = f32x4.splat(0);
  for (let i: usize = 0; i < <usize>bytes; i += 16) a = f32x4.max(a, f32x4.abs(v128.load(x + i)));
  return max(
    max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)),
    max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)),
  );
}

/** how many x have |x| = size */
export function count_abs(x: usize, bytes: i32, size: f32): i32 {
  const wanted = f32x4.splat(size);
  let count = i32x4.splat(0);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    count = i32x4.sub(count, f32x4.eq(f32x4.abs(v128.load(x + i)), wanted)); // "equal" is -1
  }
  return (
    i32x4.extract_lane(count, 0) +
    i32x4.extract_lane(count, 1) +
    (i32x4.extract_lane(count, 2) + i32x4.extract_lane(count, 3))
  );
}
