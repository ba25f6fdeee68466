// Convolutions of any odd kernel size, and dense layers: a dense layer is a 1x1 convolution of a 1x1 image.
// "Same" padding is a border of zeros that `add_border` puts around the input, so that the loops know no
// edges.
import { across, plus_product, spread } from "./lanes";

/**
 * Copy [C][H][W][N] into the middle of [C][H + 2b][W + 2b][N], whose border is zero and stays so.
 * `pixel` is the length of one pixel's lanes in bytes.
 */
export function add_border(
  from: usize, to: usize, channels: i32, height: i32, width: i32, border: i32, pixel: i32,
): void {
  const row: usize = <usize>(width * pixel);
  const wide: usize = <usize>((width + 2 * border) * pixel);
  let target: usize = to + <usize>border * wide + <usize>(border * pixel);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      for (let i: usize = 0; i < row; i += 32) {
        v128.store(target + i, v128.load(from + i));
        v128.store(target + i, v128.load(from + i, 16), 16);
      }
      from += row;
      target += wide;
    }
    target += 2 * <usize>border * wide;
  }
}

/**
 * output[o][y][x] = bias[o] + sum over i, ky, kx of w[o][i][ky][kx] * input[i][y + ky][x + kx]
 *
 * `input` has its border. `packed` are the weights in groups of four output channels, [O / 4][I][K][K][4],
 * the last group filled up with zeros; `bias` 0 means none. Both gradients of activations and outputs are
 * formed by it: for the former the caller packs the weights turned by 180 degrees, input and output channels
 * exchanged. Every output is one chain of sums in the order i, ky, kx, whatever the number of channels. Rows
 * of the kernel that lie on the border above or below the image are left out.
 */
export function correlate(
  input: usize, packed: usize, bias: usize, output: usize,
  inputs: i32, outputs: i32, height: i32, width: i32, kernel: i32, pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  const row: usize = <usize>(width + kernel - 1) * lanes;
  const plane: usize = <usize>(height + kernel - 1) * row;
  const out: usize = <usize>(height * width) * lanes;
  const group: usize = <usize>(inputs * kernel * kernel) * 16;
  const across_row: usize = <usize>kernel * lanes;
  const border = (kernel - 1) >> 1;
  for (let y = 0; y < height; y++) {
    const first = max(0, border - y), beyond = min(kernel, height + border - y);
    const top: usize = <usize>first * row, bottom: usize = <usize>beyond * row;
    const skipped: usize = <usize>(first * kernel) * 16;
    const missing: usize = <usize>((kernel - beyond) * kernel) * 16;
    for (let x = 0; x < width; x++) {
      const here: usize = input + <usize>y * row + <usize>x * lanes;
      let weights: usize = packed;
      for (let o = 0; o < outputs; o += 4) {
        const left = outputs - o;
        let b0 = f32x4.splat(0), b1 = b0, b2 = b0, b3 = b0;
        if (bias) {
          b0 = spread(bias + (<usize>o << 2));
          if (left > 1) b1 = spread(bias + (<usize>o << 2) + 4);
          if (left > 2) b2 = spread(bias + (<usize>o << 2) + 8);
          if (left > 3) b3 = spread(bias + (<usize>o << 2) + 12);
        }
        let target: usize = output + <usize>o * out + <usize>(y * width + x) * lanes;
        for (let n: usize = 0; n < lanes; n += 32) {
          let a0 = b0, c0 = b0, a1 = b1, c1 = b1, a2 = b2, c2 = b2, a3 = b3, c3 = b3;
          let w: usize = weights;
          const last: usize = weights + group;
          let start: usize = here + n;
          while (w < last) {
            w += skipped;
            const stop: usize = start + bottom;
            for (let line: usize = start + top; line < stop; line += row) {
              const end: usize = line + across_row;
              for (let p: usize = line; p < end; p += lanes) {
                const i = v128.load(p), j = v128.load(p, 16);
                let s = spread(w);
                a0 = plus_product(a0, s, i); c0 = plus_product(c0, s, j);
                s = v128.load32_splat(w, 4);
                a1 = plus_product(a1, s, i); c1 = plus_product(c1, s, j);
                s = v128.load32_splat(w, 8);
                a2 = plus_product(a2, s, i); c2 = plus_product(c2, s, j);
                s = v128.load32_splat(w, 12);
                a3 = plus_product(a3, s, i); c3 = plus_product(c3, s, j);
                w += 16;
              }
            }
            w += missing;
            start += plane;
          }
          let q: usize = target + n;
          v128.store(q, a0); v128.store(q, c0, 16);
          if (left > 1) { q += out; v128.store(q, a1); v128.store(q, c1, 16); }
          if (left > 2) { q += out; v128.store(q, a2); v128.store(q, c2, 16); }
          if (left > 3) { q += out; v128.store(q, a3); v128.store(q, c3, 16); }
        }
        weights += group;
      }
    }
  }
}

/**
 * dw[o][tap] = sum over y, x, n of dy[o][y][x][n] * input[y][x][n] shifted by the tap
 *
 * A tap is one (i, ky, kx); `offsets` says where in the bordered input its window starts, in bytes, and lists
 * a multiple of three (the surplus repeats a tap and is thrown away). Twelve sums run at once: 4 output
 * channels times 3 taps. Each sum is kept in four lanes, one row of pixels at a time in registers and over
 * rows in `partial` ([O rounded up to 4][offsets][4 lanes]); only at the end are the four lanes added.
 */
export function weight_gradient(
  input: usize, dy: usize, dw: usize, partial: usize, offsets: usize,
  taps: i32, outputs: i32, height: i32, width: i32, kernel: i32, pixel: i32,
): void {
  const listed = ((taps + 2) / 3) * 3;
  const row: usize = <usize>((width + kernel - 1) * pixel);
  const dy_row: usize = <usize>(width * pixel);
  const plane: usize = <usize>height * dy_row;
  const stride: usize = <usize>listed * 16;
  memory.fill(partial, 0, <usize>((outputs + 3) & ~3) * stride);
  for (let o = 0; o < outputs; o += 4) {
    const o1: usize = <usize>min(1, outputs - 1 - o) * plane;
    const o2: usize = <usize>min(2, outputs - 1 - o) * plane;
    const o3: usize = <usize>min(3, outputs - 1 - o) * plane;
    for (let y = 0; y < height; y++) {
      const g0: usize = dy + <usize>o * plane + <usize>y * dy_row;
      const g1: usize = g0 + o1, g2: usize = g0 + o2, g3: usize = g0 + o3;
      let sums: usize = partial + <usize>o * stride;
      for (let t = 0; t < listed; t += 3) {
        const at: usize = offsets + (<usize>t << 2), line: usize = input + <usize>y * row;
        const p: usize = line + load<u32>(at), q: usize = line + load<u32>(at, 4);
        const r: usize = line + load<u32>(at, 8);
        const zero = f32x4.splat(0);
        let p0 = zero, p1 = zero, p2 = zero, p3 = zero;
        let q0 = zero, q1 = zero, q2 = zero, q3 = zero;
        let r0 = zero, r1 = zero, r2 = zero, r3 = zero;
        for (let i: usize = 0; i < dy_row; i += 16) {
          const u = v128.load(p + i), v = v128.load(q + i), w = v128.load(r + i);
          let g = v128.load(g0 + i);
          p0 = plus_product(p0, g, u); q0 = plus_product(q0, g, v); r0 = plus_product(r0, g, w);
          g = v128.load(g1 + i);
          p1 = plus_product(p1, g, u); q1 = plus_product(q1, g, v); r1 = plus_product(r1, g, w);
          g = v128.load(g2 + i);
          p2 = plus_product(p2, g, u); q2 = plus_product(q2, g, v); r2 = plus_product(r2, g, w);
          g = v128.load(g3 + i);
          p3 = plus_product(p3, g, u); q3 = plus_product(q3, g, v); r3 = plus_product(r3, g, w);
        }
        keep(sums, p0, q0, r0);
        keep(sums + stride, p1, q1, r1);
        keep(sums + 2 * stride, p2, q2, r2);
        keep(sums + 3 * stride, p3, q3, r3);
        sums += 48;
      }
    }
  }
  for (let o = 0; o < outputs; o++) {
    for (let t = 0; t < taps; t++) {
      store<f32>(dw, across(v128.load(partial + <usize>o * stride + (<usize>t << 4))));
      dw += 4;
    }
  }
}

// @ts-ignore: decorator
@inline function keep(p: usize, a: v128, b: v128, c: v128): void {
  v128.store(p, f32x4.add(v128.load(p), a));
  v128.store(p, f32x4.add(v128.load(p, 16), b), 16);
  v128.store(p, f32x4.add(v128.load(p, 32), c), 32);
}
