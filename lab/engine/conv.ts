// Convolutions of any odd kernel size, and dense layers: a dense layer is a 1x1 convolution of a 1x1 image.
// "Same" padding is a border of zeros that `add_border` puts around the input. There the channels of a pixel
// lie together, [H][W][C][N]: what a row of the kernel covers is one run of memory, and the window of an
// output pixel does not compete for a few lines of the cache, as it does where rows and channels lie a power
// of two apart.
import { across, plus_product, spread } from "./lanes";

/**
 * Copy [C][H][W][N] into the middle of [H + 2b][W + 2b][C][N], whose border is zero and stays so.
 * `pixel` is the length of one pixel's lanes in bytes.
 */
export function add_border(
  from: usize, to: usize, channels: i32, height: i32, width: i32, border: i32, pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  const step: usize = <usize>channels * lanes;
  const row: usize = <usize>(width + 2 * border) * step;
  const middle: usize = to + <usize>border * (row + step);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      let target: usize = middle + <usize>y * row + <usize>c * lanes;
      for (let x = 0; x < width; x++) {
        for (let i: usize = 0; i < lanes; i += 32) {
          v128.store(target + i, v128.load(from + i));
          v128.store(target + i, v128.load(from + i, 16), 16);
        }
        from += lanes;
        target += step;
      }
    }
  }
}

/**
 * output[o][y][x] = bias[o] + sum over ky, kx, i of w[o][i][ky][kx] * input[y + ky][x + kx][i]
 *
 * `input` has its border. `packed` are the weights in groups of four output channels, [O / 4][K][K][I][4],
 * the last group filled up with zeros; `bias` 0 means none. Both gradients of activations and outputs are
 * formed by it: for the former the caller packs the weights turned by 180 degrees, input and output channels
 * exchanged. Every output is one chain of sums in the order ky, kx, i, whatever the number of channels. What
 * of the kernel lies on the border is left out.
 */
export function correlate(
  input: usize, packed: usize, bias: usize, output: usize,
  inputs: i32, outputs: i32, height: i32, width: i32, kernel: i32, pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  const step: usize = <usize>inputs * lanes;
  const row: usize = <usize>(width + kernel - 1) * step;
  const out: usize = <usize>(height * width) * lanes;
  const weights_step: usize = <usize>inputs * 16;
  const weights_row: usize = <usize>kernel * weights_step;
  const group: usize = <usize>kernel * weights_row;
  const border = (kernel - 1) >> 1;
  for (let y = 0; y < height; y++) {
    const first: usize = <usize>max(0, border - y);
    const lines: usize = <usize>min(kernel, height + border - y) - first;
    for (let x = 0; x < width; x++) {
      const left: usize = <usize>max(0, border - x), right: usize = <usize>min(kernel, width + border - x);
      const here: usize = input + (<usize>y + first) * row + (<usize>x + left) * step;
      const length: usize = (right - left) * step;
      let weights: usize = packed + first * weights_row + left * weights_step;
      let target: usize = output + <usize>(y * width + x) * lanes;
      for (let o = 0; o < outputs; o += 4) {
        const more = outputs - o;
        let b0 = f32x4.splat(0), b1 = b0, b2 = b0, b3 = b0;
        if (bias) {
          b0 = spread(bias + (<usize>o << 2));
          if (more > 1) b1 = spread(bias + (<usize>o << 2) + 4);
          if (more > 2) b2 = spread(bias + (<usize>o << 2) + 8);
          if (more > 3) b3 = spread(bias + (<usize>o << 2) + 12);
        }
        for (let n: usize = 0; n < lanes; n += 32) {
          let a0 = b0, c0 = b0, a1 = b1, c1 = b1, a2 = b2, c2 = b2, a3 = b3, c3 = b3;
          let line: usize = here + n, start: usize = weights;
          for (let k: usize = 0; k < lines; k++) {
            let w: usize = start;
            const end: usize = line + length;
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
            line += row;
            start += weights_row;
          }
          let q: usize = target + n;
          v128.store(q, a0); v128.store(q, c0, 16);
          if (more > 1) { q += out; v128.store(q, a1); v128.store(q, c1, 16); }
          if (more > 2) { q += out; v128.store(q, a2); v128.store(q, c2, 16); }
          if (more > 3) { q += out; v128.store(q, a3); v128.store(q, c3, 16); }
        }
        weights += group;
        target += 4 * out;
      }
    }
  }
}

/**
 * dw[o][tap] = sum over y, x, n of dy[o][y][x][n] * input[y][x][n] shifted by the tap
 *
 * A tap is one (i, ky, kx); `offsets` says where in the bordered input its window starts, in bytes, and lists
 * an even number (the surplus repeats a tap and is thrown away). Eight sums run at once, which is what fits
 * into the registers: 4 output channels times 2 taps. Each sum is kept in four lanes, one row of pixels at a
 * time in registers and over rows in `partial` ([O rounded up to 4][offsets][4 lanes]); only at the end are
 * the four lanes added.
 */
export function weight_gradient(
  input: usize, dy: usize, dw: usize, partial: usize, offsets: usize,
  taps: i32, outputs: i32, height: i32, width: i32, kernel: i32, pixel: i32,
): void {
  const lanes: usize = <usize>pixel;
  const step: usize = <usize>(taps / (kernel * kernel)) * lanes, skip: usize = step - lanes;
  const row: usize = <usize>(width + kernel - 1) * step;
  const dy_row: usize = <usize>width * lanes, plane: usize = <usize>height * dy_row;
  const listed = (taps + 1) & ~1;
  const stride: usize = <usize>listed * 16;
  memory.fill(partial, 0, <usize>((outputs + 3) & ~3) * stride);
  for (let o = 0; o < outputs; o += 4) {
    const o1: usize = <usize>min(1, outputs - 1 - o) * plane;
    const o2: usize = <usize>min(2, outputs - 1 - o) * plane;
    const o3: usize = <usize>min(3, outputs - 1 - o) * plane;
    for (let y = 0; y < height; y++) {
      const line: usize = input + <usize>y * row, start: usize = dy + <usize>o * plane + <usize>y * dy_row;
      let sums: usize = partial + <usize>o * stride;
      for (let t = 0; t < listed; t += 2) {
        const at: usize = offsets + (<usize>t << 2);
        let p: usize = line + load<u32>(at), q: usize = line + load<u32>(at, 4);
        let g0 = start, g1: usize = g0 + o1, g2: usize = g0 + o2, g3: usize = g0 + o3;
        const zero = f32x4.splat(0);
        let p0 = zero, p1 = zero, p2 = zero, p3 = zero, q0 = zero, q1 = zero, q2 = zero, q3 = zero;
        for (const stop: usize = g0 + dy_row; g0 < stop;) {
          for (const end: usize = g0 + lanes; g0 < end;) {
            let u = v128.load(p), v = v128.load(q);
            let g = v128.load(g0);
            p0 = plus_product(p0, g, u); q0 = plus_product(q0, g, v);
            g = v128.load(g1);
            p1 = plus_product(p1, g, u); q1 = plus_product(q1, g, v);
            g = v128.load(g2);
            p2 = plus_product(p2, g, u); q2 = plus_product(q2, g, v);
            g = v128.load(g3);
            p3 = plus_product(p3, g, u); q3 = plus_product(q3, g, v);
            u = v128.load(p, 16); v = v128.load(q, 16);
            g = v128.load(g0, 16);
            p0 = plus_product(p0, g, u); q0 = plus_product(q0, g, v);
            g = v128.load(g1, 16);
            p1 = plus_product(p1, g, u); q1 = plus_product(q1, g, v);
            g = v128.load(g2, 16);
            p2 = plus_product(p2, g, u); q2 = plus_product(q2, g, v);
            g = v128.load(g3, 16);
            p3 = plus_product(p3, g, u); q3 = plus_product(q3, g, v);
            p += 32; q += 32; g0 += 32; g1 += 32; g2 += 32; g3 += 32;
          }
          p += skip; q += skip;
        }
        keep(sums, p0, q0);
        keep(sums + stride, p1, q1);
        keep(sums + 2 * stride, p2, q2);
        keep(sums + 3 * stride, p3, q3);
        sums += 32;
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
@inline function keep(p: usize, a: v128, b: v128): void {
  v128.store(p, f32x4.add(v128.load(p), a));
  v128.store(p, f32x4.add(v128.load(p, 16), b), 16);
}
