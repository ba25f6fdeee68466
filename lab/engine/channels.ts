// Maps over all values of a channel: what normalizations do to it, forward and backward.

/** y = slope * x + shift */
export function affine(x: usize, y: usize, bytes: i32, slope: f32, shift: f32): void {
  const s = f32x4.splat(slope);
  const t = f32x4.splat(shift);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    v128.store(y + i, f32x4.add(f32x4.mul(v128.load(x + i), s), t));
  }
}

/** dx = a * g + b * x + c: backward through batch norm, and through l_2 */
export function combine(g: usize, x: usize, dx: usize, bytes: i32, a: f32, b: f32, c: f32): void {
  const u = f32x4.splat(a);
  const v = f32x4.splat(b);
  const w = f32x4.splat(c);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    const scaled = f32x4.add(f32x4.mul(v128.load(g + i), u), f32x4.mul(v128.load(x + i), v));
    v128.store(dx + i, f32x4.add(scaled, w));
  }
}

/** dx = a * g + b * sign(x) + c, with sign(0) = 0: backward through l_1 */
export function combine_sign(g: usize, x: usize, dx: usize, bytes: i32, a: f32, b: f32, c: f32): void {
  const u = f32x4.splat(a);
  const v = f32x4.splat(b);
  const w = f32x4.splat(c);
  const zero = f32x4.splat(0);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    const value = v128.load(x + i);
    const up = v128.and(v, f32x4.gt(value, zero));
    const down = v128.and(v, f32x4.lt(value, zero));
    const signed = f32x4.sub(up, down);
    v128.store(dx + i, f32x4.add(f32x4.add(f32x4.mul(v128.load(g + i), u), signed), w));
  }
}

/** dx = a * g + b * sign(x) [|x| = peak] + c: backward through l_inf */
export function combine_peak(
  g: usize,
  x: usize,
  dx: usize,
  bytes: i32,
  a: f32,
  b: f32,
  c: f32,
  peak: f32,
): void {
  const u = f32x4.splat(a);
  const v = f32x4.splat(b);
  const w = f32x4.splat(c);
  const high = f32x4.splat(peak);
  const low = f32x4.splat(-peak);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    const value = v128.load(x + i);
    const signed = f32x4.sub(v128.and(v, f32x4.eq(value, high)), v128.and(v, f32x4.eq(value, low)));
    v128.store(dx + i, f32x4.add(f32x4.add(f32x4.mul(v128.load(g + i), u), signed), w));
  }
}

/** g = g * s: backward through the scale of the noise */
export function multiply(g: usize, s: usize, bytes: i32): void {
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    v128.store(g + i, f32x4.mul(v128.load(g + i), v128.load(s + i)));
  }
}
