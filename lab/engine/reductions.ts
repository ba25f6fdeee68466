// Sums over all values of a channel. Eight float32 sums run side by side for up to BLOCK bytes, then their
// total goes to a float64: as exact as the float32 values deserve, and always in the same order.
import { across, plus_product, spread } from "./lanes";

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

/**
 * How many values fall into each of `bins` bins of equal width between the smallest and the largest; of
 * `rows` rows of `count` values, which start `stride` values apart. Writes the smallest value, the largest, 8
 * bytes of room, then [bins + 1][4] counts: four for each bin, to be added; those of the last belong to the
 * bin before.
 */
export function histogram(x: usize, rows: i32, count: i32, stride: i32, bins: i32, into: usize): void {
  const step: usize = (<usize>stride) << 2, length: usize = (<usize>count) << 2;
  let low = spread(x), high = low;
  let start = x;
  for (let r = 0; r < rows; r++) {
    for (let p = start, end = start + length; p < end;) {
      const whole = end - p >= 16;
      const v = whole ? v128.load(p) : spread(p);
      low = f32x4.pmin(low, v);
      high = f32x4.pmax(high, v);
      p += whole ? 16 : 4;
    }
    start += step;
  }
  const least = min(
    min(f32x4.extract_lane(low, 0), f32x4.extract_lane(low, 1)),
    min(f32x4.extract_lane(low, 2), f32x4.extract_lane(low, 3)),
  );
  const most = max(
    max(f32x4.extract_lane(high, 0), f32x4.extract_lane(high, 1)),
    max(f32x4.extract_lane(high, 2), f32x4.extract_lane(high, 3)),
  );
  const span = most - least;
  const beyond = f32x4.splat(<f32>bins), per_unit = f32x4.splat(<f32>bins / (span > 0 ? span : 1));
  low = f32x4.splat(least);
  memory.fill(into, 0, (<usize>bins + 2) << 4);
  store<f32>(into, least);
  store<f32>(into, most, 4);
  start = x;
  for (let r = 0; r < rows; r++) {
    for (let p = start, end = start + length; p < end;) {
      const whole = end - p >= 16;
      const v = whole ? v128.load(p) : spread(p);
      // Not-a-number, which stays one here, counts as 0.
      const scaled = f32x4.pmin(f32x4.mul(f32x4.sub(v, low), per_unit), beyond);
      const bin = i32x4.shl(i32x4.trunc_sat_f32x4_s(scaled), 4);
      let at: usize = into + <usize>i32x4.extract_lane(bin, 0);
      store<i32>(at, load<i32>(at, 16) + 1, 16);
      p += 4;
      if (!whole) continue;
      at = into + <usize>i32x4.extract_lane(bin, 1);
      store<i32>(at, load<i32>(at, 20) + 1, 20);
      at = into + <usize>i32x4.extract_lane(bin, 2);
      store<i32>(at, load<i32>(at, 24) + 1, 24);
      at = into + <usize>i32x4.extract_lane(bin, 3);
      store<i32>(at, load<i32>(at, 28) + 1, 28);
      p += 12;
    }
    start += step;
  }
}
