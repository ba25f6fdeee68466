// What the probes do with whole vectors: parameters, gradients, activations. Sums as in ./reductions.ts.
import { across, plus_product } from "./lanes";

const BLOCK: usize = 4096;

/** to = from - length * direction */
export function step_along(from: usize, direction: usize, to: usize, bytes: i32, length: f32): void {
  const t = f32x4.splat(length);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    v128.store(to + i, f32x4.sub(v128.load(from + i), f32x4.mul(t, v128.load(direction + i))));
  }
}

/** sum of (a - b)^2 */
export function squared_distance(a: usize, b: usize, bytes: i32): f64 {
  let total: f64 = 0;
  for (let end = a + <usize>bytes; a < end;) {
    const stop = min(a + BLOCK, end);
    let s = f32x4.splat(0);
    let t = s;
    for (; a < stop; a += 32) {
      const d = f32x4.sub(v128.load(a), v128.load(b));
      const e = f32x4.sub(v128.load(a, 16), v128.load(b, 16));
      s = plus_product(s, d, d);
      t = plus_product(t, e, e);
      b += 32;
    }
    total += <f64>across(f32x4.add(s, t));
  }
  return total;
}
