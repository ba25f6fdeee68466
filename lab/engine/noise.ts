// Noise on activations: Santurkar et al. 2018, appendix A.2.1, Algorithm 1. The caller draws the distribution
// of this step, mu and sigma for each channel; here every value of the channel gets its own m and s from it.
//
// Random numbers: xoshiro128++ (Blackman and Vigna 2019), four generators side by side, one per lane. `state`
// holds their four words, lane after lane. Normal numbers: Box and Muller 1958, in float32, from series
// written out below.

// @ts-ignore: decorator
@inline function rotate(v: v128, left: i32): v128 {
  return v128.or(i32x4.shl(v, left), i32x4.shr_u(v, 32 - left));
}

/** Four random words of 32 bits, one from each generator. */
// @ts-ignore: decorator
@inline function next(state: usize): v128 {
  let s0 = v128.load(state), s1 = v128.load(state, 16), s2 = v128.load(state, 32), s3 = v128.load(state, 48);
  const drawn = i32x4.add(rotate(i32x4.add(s0, s3), 7), s0);
  const t = i32x4.shl(s1, 9);
  s2 = v128.xor(s2, s0);
  s3 = v128.xor(s3, s1);
  s1 = v128.xor(s1, s2);
  s0 = v128.xor(s0, s3);
  s2 = v128.xor(s2, t);
  s3 = rotate(s3, 11);
  v128.store(state, s0);
  v128.store(state, s1, 16);
  v128.store(state, s2, 32);
  v128.store(state, s3, 48);
  return drawn;
}

/** The upper 24 bits as a float32 in [0, 1). */
// @ts-ignore: decorator
@inline function uniform(drawn: v128): v128 {
  return f32x4.mul(f32x4.convert_i32x4_s(i32x4.shr_u(drawn, 8)), f32x4.splat(5.9604644775390625e-8));
}

/**
 * ln u for 0 < u <= 1: u = 2^e m with m between sqrt(1/2) and sqrt(2), and ln m = 2 artanh((m - 1) / (m +
 * 1)).
 */
// @ts-ignore: decorator
@inline function logarithm(u: v128): v128 {
  const one = f32x4.splat(1);
  const e = i32x4.shr_s(i32x4.sub(u, i32x4.splat(0x3f3504f3)), 23);
  const m = i32x4.sub(u, i32x4.shl(e, 23));
  const t = f32x4.div(f32x4.sub(m, one), f32x4.add(m, one)), tt = f32x4.mul(t, t);
  let series = f32x4.splat(0.1111111111111111);
  series = f32x4.add(f32x4.mul(series, tt), f32x4.splat(0.14285714285714285));
  series = f32x4.add(f32x4.mul(series, tt), f32x4.splat(0.2));
  series = f32x4.add(f32x4.mul(series, tt), f32x4.splat(0.3333333333333333));
  series = f32x4.add(f32x4.mul(series, tt), one);
  const part = f32x4.mul(f32x4.add(t, t), series);
  return f32x4.add(f32x4.mul(f32x4.convert_i32x4_s(e), f32x4.splat(0.6931471805599453)), part);
}

/**
 * a <- s * a + m for all values of a channel, with m = low + width * u and s = sigma + spread * normal; s and
 * m are kept.
 */
export function disturb(
  a: usize, s: usize, m: usize, bytes: i32, state: usize, low: f32, width: f32, sigma: f32, spread: f32,
): void {
  const bottom = f32x4.splat(low), range = f32x4.splat(width);
  const centre = f32x4.splat(sigma), deviation = f32x4.splat(spread);
  const sign = i32x4.splat(0x80000000);
  for (let i: usize = 0; i < <usize>bytes; i += 32) {
    // Two normals: radius sqrt(-2 ln u), u in (0, 1], and an angle. Within its quadrant the angle is pi/4 + x
    // with |x| <= pi/4; the two lowest bits choose the quadrant.
    const first = i32x4.add(i32x4.shr_u(next(state), 8), i32x4.splat(1));
    const u = f32x4.mul(f32x4.convert_i32x4_s(first), f32x4.splat(5.9604644775390625e-8));
    const length = f32x4.sqrt(f32x4.mul(f32x4.splat(-2), logarithm(u)));
    const radius = f32x4.mul(length, f32x4.splat(0.7071067811865476)); // cos(pi/4): used twice below
    const second = next(state);
    const x = f32x4.mul(f32x4.sub(uniform(second), f32x4.splat(0.5)), f32x4.splat(1.5707963267948966));
    const xx = f32x4.mul(x, x);
    let cosine = f32x4.splat(2.48015873015873e-5);
    cosine = f32x4.add(f32x4.mul(cosine, xx), f32x4.splat(-0.001388888888888889));
    cosine = f32x4.add(f32x4.mul(cosine, xx), f32x4.splat(0.041666666666666664));
    cosine = f32x4.add(f32x4.mul(cosine, xx), f32x4.splat(-0.5));
    cosine = f32x4.add(f32x4.mul(cosine, xx), f32x4.splat(1));
    let sine = f32x4.splat(-0.0001984126984126984);
    sine = f32x4.add(f32x4.mul(sine, xx), f32x4.splat(0.008333333333333333));
    sine = f32x4.add(f32x4.mul(sine, xx), f32x4.splat(-0.16666666666666666));
    sine = f32x4.mul(x, f32x4.add(f32x4.mul(sine, xx), f32x4.splat(1)));
    const one = v128.xor(f32x4.mul(radius, f32x4.sub(cosine, sine)), i32x4.shl(second, 31));
    const other = v128.xor(
      f32x4.mul(radius, f32x4.add(cosine, sine)), v128.and(i32x4.shl(second, 30), sign),
    );
    let scale = f32x4.add(f32x4.mul(one, deviation), centre);
    let shift = f32x4.add(f32x4.mul(uniform(next(state)), range), bottom);
    v128.store(s + i, scale);
    v128.store(m + i, shift);
    v128.store(a + i, f32x4.add(f32x4.mul(scale, v128.load(a + i)), shift));
    scale = f32x4.add(f32x4.mul(other, deviation), centre);
    shift = f32x4.add(f32x4.mul(uniform(next(state)), range), bottom);
    v128.store(s + i, scale, 16);
    v128.store(m + i, shift, 16);
    v128.store(a + i, f32x4.add(f32x4.mul(scale, v128.load(a + i, 16)), shift), 16);
  }
}

/** a <- s * a + m once more, with what `disturb` has kept. */
export function disturb_again(a: usize, s: usize, m: usize, bytes: i32): void {
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    v128.store(a + i, f32x4.add(f32x4.mul(v128.load(s + i), v128.load(a + i)), v128.load(m + i)));
  }
}
