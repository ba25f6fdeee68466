// ReLU, alone or followed by 2x2 max pooling. Not-a-number stays not-a-number on the way forward.

/** a = max(0, z) */
export function relu(z: usize, a: usize, bytes: i32): void {
  const zero = f32x4.splat(0);
  for (let i: usize = 0; i < <usize>bytes; i += 16) v128.store(a + i, f32x4.max(zero, v128.load(z + i)));
}

/** dz = da where z > 0, else 0 */
export function relu_backward(z: usize, da: usize, dz: usize, bytes: i32): void {
  const zero = f32x4.splat(0);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    v128.store(dz + i, v128.and(v128.load(da + i), f32x4.gt(v128.load(z + i), zero)));
  }
}

/**
 * a = the largest of 0 and each 2x2 window of z, (C, H, W) -> (C, H / 2, W / 2); an odd last row or column is
 * left out.
 */
export function relu_pool(z: usize, a: usize, channels: i32, height: i32, width: i32, pixel: i32): void {
  const zero = f32x4.splat(0);
  const lanes: usize = <usize>pixel;
  const row: usize = <usize>width * lanes;
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y + 1 < height; y += 2) {
      let p: usize = z + <usize>(c * height + y) * row;
      for (let x = 0; x + 1 < width; x += 2) {
        for (let n: usize = 0; n < lanes; n += 16) {
          const i = v128.load(p), j = v128.load(p + lanes);
          const k = v128.load(p + row), l = v128.load(p + row + lanes);
          // `pmax` is one instruction where `max` is eight, but drops what is not a number.
          const largest = f32x4.pmax(f32x4.pmax(f32x4.pmax(f32x4.pmax(zero, i), j), k), l);
          const upper = v128.or(not_a_number(i), not_a_number(j));
          const lower = v128.or(not_a_number(k), not_a_number(l));
          v128.store(a, v128.or(largest, v128.or(upper, lower)));
          a += 16;
          p += 16;
        }
        p += lanes;
      }
    }
  }
}

/**
 * dz = da at the first place of each window, in reading order, where z is the window's positive maximum; else
 * 0.
 */
export function relu_pool_backward(
  z: usize,
  a: usize,
  da: usize,
  dz: usize,
  channels: i32,
  height: i32,
  width: i32,
  pixel: i32,
): void {
  const zero = f32x4.splat(0);
  const lanes: usize = <usize>pixel;
  const row: usize = <usize>width * lanes;
  if ((height | width) & 1) memory.fill(dz, 0, <usize>(channels * height) * row);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y + 1 < height; y += 2) {
      const start: usize = <usize>(c * height + y) * row;
      let p: usize = z + start;
      let q: usize = dz + start;
      for (let x = 0; x + 1 < width; x += 2) {
        for (let n: usize = 0; n < lanes; n += 16) {
          const largest = v128.load(a);
          let gradient = v128.and(v128.load(da), f32x4.gt(largest, zero));
          let here = f32x4.eq(v128.load(p), largest);
          v128.store(q, v128.and(gradient, here));
          gradient = v128.andnot(gradient, here);
          here = f32x4.eq(v128.load(p + lanes), largest);
          v128.store(q + lanes, v128.and(gradient, here));
          gradient = v128.andnot(gradient, here);
          here = f32x4.eq(v128.load(p + row), largest);
          v128.store(q + row, v128.and(gradient, here));
          gradient = v128.andnot(gradient, here);
          here = f32x4.eq(v128.load(p + row + lanes), largest);
          v128.store(q + row + lanes, v128.and(gradient, here));
          a += 16;
          da += 16;
          p += 16;
          q += 16;
        }
        p += lanes;
        q += lanes;
      }
    }
  }
}

/** All bits, which is not a number either, in the lanes that hold not-a-number; else none. */
// @ts-ignore: decorator
@inline function not_a_number(v: v128): v128 {
  return f32x4.ne(v, v);
}
