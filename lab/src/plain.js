// The kernels of ../engine in plain JavaScript, for browsers without WebAssembly SIMD: same names, arguments
// and bits.
//
// Every product and every sum is rounded to float32 (`round`), and sums run in the order in which the four
// lanes of a vector form them, so a network trained here has the parameters of one trained in WebAssembly,
// bit for bit. What each function computes is said in ../engine.

const round = Math.fround;

/** The kernels on a memory; pointers are byte offsets into it, as in WebAssembly. */
export function plainKernels(buffer) {
  const F = new Float32Array(buffer);
  const U = new Uint32Array(buffer);

  // --- convolution ---

  function add_border(from, to, channels, height, width, border, pixel) {
    const lanes = pixel >> 2, step = channels * lanes, row = (width + 2 * border) * step;
    let source = from >> 2;
    for (let c = 0; c < channels; c++) {
      for (let y = 0; y < height; y++) {
        let target = (to >> 2) + (border + y) * row + border * step + c * lanes;
        for (let x = 0; x < width; x++, source += lanes, target += step) {
          F.copyWithin(target, source, source + lanes);
        }
      }
    }
  }

  function correlate(input, packed, bias, output, inputs, outputs, height, width, kernel, pixel) {
    const lanes = pixel >> 2, step = inputs * lanes, row = (width + kernel - 1) * step;
    const out = height * width * lanes, weights_row = 4 * kernel * inputs, border = (kernel - 1) >> 1;
    for (let y = 0; y < height; y++) {
      const first = Math.max(0, border - y), beyond = Math.min(kernel, height + border - y);
      for (let x = 0; x < width; x++) {
        const left = Math.max(0, border - x), right = Math.min(kernel, width + border - x);
        const here = (input >> 2) + (y + first) * row + (x + left) * step, length = (right - left) * step;
        for (let o = 0; o < outputs; o += 4) {
          const more = outputs - o, b = (bias >> 2) + o;
          const weights = (packed >> 2) + (o * kernel * kernel + 4 * left) * inputs + first * weights_row;
          const b0 = bias ? F[b] : 0, b1 = bias && more > 1 ? F[b + 1] : 0;
          const b2 = bias && more > 2 ? F[b + 2] : 0, b3 = bias && more > 3 ? F[b + 3] : 0;
          for (let n = 0; n < lanes; n += 4) {
            let a00 = b0, a01 = b0, a02 = b0, a03 = b0, a10 = b1, a11 = b1, a12 = b1, a13 = b1;
            let a20 = b2, a21 = b2, a22 = b2, a23 = b2, a30 = b3, a31 = b3, a32 = b3, a33 = b3;
            let line = here + n, start = weights;
            for (let ky = first; ky < beyond; ky++, line += row, start += weights_row) {
              for (let p = line, w = start, end = line + length; p < end; p += lanes, w += 4) {
                const x0 = F[p], x1 = F[p + 1], x2 = F[p + 2], x3 = F[p + 3];
                const w0 = F[w], w1 = F[w + 1], w2 = F[w + 2], w3 = F[w + 3];
                a00 = round(a00 + round(w0 * x0)); a01 = round(a01 + round(w0 * x1));
                a02 = round(a02 + round(w0 * x2)); a03 = round(a03 + round(w0 * x3));
                a10 = round(a10 + round(w1 * x0)); a11 = round(a11 + round(w1 * x1));
                a12 = round(a12 + round(w1 * x2)); a13 = round(a13 + round(w1 * x3));
                a20 = round(a20 + round(w2 * x0)); a21 = round(a21 + round(w2 * x1));
                a22 = round(a22 + round(w2 * x2)); a23 = round(a23 + round(w2 * x3));
                a30 = round(a30 + round(w3 * x0)); a31 = round(a31 + round(w3 * x1));
                a32 = round(a32 + round(w3 * x2)); a33 = round(a33 + round(w3 * x3));
              }
            }
            let q = (output >> 2) + o * out + (y * width + x) * lanes + n;
            F[q] = a00; F[q + 1] = a01; F[q + 2] = a02; F[q + 3] = a03;
            q += out;
            if (more > 1) { F[q] = a10; F[q + 1] = a11; F[q + 2] = a12; F[q + 3] = a13; }
            q += out;
            if (more > 2) { F[q] = a20; F[q + 1] = a21; F[q + 2] = a22; F[q + 3] = a23; }
            q += out;
            if (more > 3) { F[q] = a30; F[q + 1] = a31; F[q + 2] = a32; F[q + 3] = a33; }
          }
        }
      }
    }
  }

  function weight_gradient(input, dy, dw, partial, offsets, taps, outputs, height, width, kernel, pixel) {
    const lanes = pixel >> 2, step = (taps / (kernel * kernel)) * lanes, row = (width + kernel - 1) * step;
    const length = width * lanes, plane = height * length;
    const listed = (taps + 1) & ~1, stride = 4 * listed, sums = partial >> 2;
    F.fill(0, sums, sums + ((outputs + 3) & ~3) * stride);
    for (let o = 0; o < outputs; o += 4) {
      const o1 = Math.min(1, outputs - 1 - o) * plane, o2 = Math.min(2, outputs - 1 - o) * plane;
      const o3 = Math.min(3, outputs - 1 - o) * plane;
      for (let y = 0; y < height; y++) {
        const start = (dy >> 2) + o * plane + y * length, line = (input >> 2) + y * row;
        for (let t = 0; t < listed; t += 2) {
          const at = (offsets >> 2) + t;
          for (let lane = 0; lane < 4; lane++) {
            let p = line + (U[at] >> 2) + lane, q = line + (U[at + 1] >> 2) + lane;
            let p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
            for (let i = start + lane, stop = start + length; i < stop; p += step - lanes, q += step - lanes) {
              for (const end = i + lanes; i < end; i += 4, p += 4, q += 4) {
                const u = F[p], v = F[q], a = F[i], b = F[i + o1], c = F[i + o2], d = F[i + o3];
                p0 = round(p0 + round(a * u)); q0 = round(q0 + round(a * v));
                p1 = round(p1 + round(b * u)); q1 = round(q1 + round(b * v));
                p2 = round(p2 + round(c * u)); q2 = round(q2 + round(c * v));
                p3 = round(p3 + round(d * u)); q3 = round(q3 + round(d * v));
              }
            }
            let s = sums + o * stride + 4 * t + lane;
            F[s] += p0; F[s + 4] += q0;
            s += stride;
            F[s] += p1; F[s + 4] += q1;
            s += stride;
            F[s] += p2; F[s + 4] += q2;
            s += stride;
            F[s] += p3; F[s + 4] += q3;
          }
        }
      }
    }
    for (let o = 0, d = dw >> 2; o < outputs; o++) {
      for (let t = 0; t < taps; t++, d++) {
        const s = sums + o * stride + 4 * t;
        F[d] = round(F[s] + F[s + 1]) + round(F[s + 2] + F[s + 3]);
      }
    }
  }

  // --- ReLU and pooling ---

  function relu(z, a, bytes) {
    for (let p = z >> 2, q = a >> 2, end = p + (bytes >> 2); p < end; p++, q++) F[q] = Math.max(0, F[p]);
  }

  function relu_backward(z, da, dz, bytes) {
    const from = (da - z) >> 2, to = (dz - z) >> 2;
    for (let p = z >> 2, end = p + (bytes >> 2); p < end; p++) F[p + to] = F[p] > 0 ? F[p + from] : 0;
  }

  function relu_pool(z, a, channels, height, width, pixel) {
    const lanes = pixel >> 2, row = width * lanes;
    let q = a >> 2;
    for (let c = 0; c < channels; c++) {
      for (let y = 0; y + 1 < height; y += 2) {
        for (let x = 0; x + 1 < width; x += 2) {
          let p = (z >> 2) + (c * height + y) * row + x * lanes;
          for (let n = 0; n < lanes; n++, p++, q++) {
            F[q] = Math.max(0, F[p], F[p + lanes], F[p + row], F[p + row + lanes]);
          }
        }
      }
    }
  }

  function relu_pool_backward(z, a, da, dz, channels, height, width, pixel) {
    const lanes = pixel >> 2, row = width * lanes, to = (dz - z) >> 2;
    if ((height | width) & 1) F.fill(0, dz >> 2, (dz >> 2) + channels * height * row);
    let q = a >> 2, g = da >> 2;
    for (let c = 0; c < channels; c++) {
      for (let y = 0; y + 1 < height; y += 2) {
        for (let x = 0; x + 1 < width; x += 2) {
          let p = (z >> 2) + (c * height + y) * row + x * lanes;
          for (let n = 0; n < lanes; n++, p++, q++, g++) {
            const largest = F[q], r = p + to;
            F[r] = F[r + lanes] = F[r + row] = F[r + row + lanes] = 0;
            if (!(largest > 0)) continue;
            if (F[p] === largest) F[r] = F[g];
            else if (F[p + lanes] === largest) F[r + lanes] = F[g];
            else if (F[p + row] === largest) F[r + row] = F[g];
            else F[r + row + lanes] = F[g];
          }
        }
      }
    }
  }

  // --- sums ---

  function clear_padding(p, pixels, batch, lanes) {
    for (let i = 0, at = p >> 2; i < pixels; i++, at += lanes) F.fill(0, at + batch, at + lanes);
  }

  // The sum of two vectors' lanes: those of the first have the even names below, those of the second the odd
  // ones.
  const across = (a, b, c, d, e, f, g, h) =>
    round(round(round(a + e) + round(b + f)) + round(round(c + g) + round(d + h)));
  const BLOCK = 1024;

  function sum(x, bytes) {
    let total = 0;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; ) {
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      for (const stop = Math.min(p + BLOCK, end); p < stop; p += 8) {
        a = round(a + F[p]); b = round(b + F[p + 1]); c = round(c + F[p + 2]); d = round(d + F[p + 3]);
        e = round(e + F[p + 4]); f = round(f + F[p + 5]); g = round(g + F[p + 6]); h = round(h + F[p + 7]);
      }
      total += across(a, b, c, d, e, f, g, h);
    }
    return total;
  }

  const plusSquare = (total, difference) => round(total + round(difference * difference));

  function sum_squared_deviations(x, rows, count, stride, mean) {
    const m = round(mean), full = count & ~7;
    let total = 0;
    for (let r = 0; r < rows; r++) {
      let p = (x >> 2) + r * stride;
      const rest = p + count;
      for (const end = p + full; p < end; ) {
        let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        for (const stop = Math.min(p + BLOCK, end); p < stop; p += 8) {
          a = plusSquare(a, round(F[p] - m)); b = plusSquare(b, round(F[p + 1] - m));
          c = plusSquare(c, round(F[p + 2] - m)); d = plusSquare(d, round(F[p + 3] - m));
          e = plusSquare(e, round(F[p + 4] - m)); f = plusSquare(f, round(F[p + 5] - m));
          g = plusSquare(g, round(F[p + 6] - m)); h = plusSquare(h, round(F[p + 7] - m));
        }
        total += across(a, b, c, d, e, f, g, h);
      }
      for (; p < rest; p++) total += plusSquare(0, round(F[p] - m));
    }
    return total;
  }

  function sum_centred_products(weights, x, bytes, mean) {
    const m = round(mean), o = (weights - x) >> 2;
    const plus = (total, p) => round(total + round(F[p + o] * round(F[p] - m)));
    let total = 0;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; ) {
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      for (const stop = Math.min(p + BLOCK, end); p < stop; p += 8) {
        a = plus(a, p); b = plus(b, p + 1); c = plus(c, p + 2); d = plus(d, p + 3);
        e = plus(e, p + 4); f = plus(f, p + 5); g = plus(g, p + 6); h = plus(h, p + 7);
      }
      total += across(a, b, c, d, e, f, g, h);
    }
    return total;
  }

  /** The same of any terms: `plus(total, at)` adds what belongs to the value at `at`. Slower, for rare sums. */
  function sum_of(x, bytes, plus) {
    let total = 0;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; ) {
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      for (const stop = Math.min(p + BLOCK, end); p < stop; p += 8) {
        a = plus(a, p); b = plus(b, p + 1); c = plus(c, p + 2); d = plus(d, p + 3);
        e = plus(e, p + 4); f = plus(f, p + 5); g = plus(g, p + 6); h = plus(h, p + 7);
      }
      total += across(a, b, c, d, e, f, g, h);
    }
    return total;
  }

  const sum_abs = (x, bytes) => sum_of(x, bytes, (total, p) => round(total + Math.abs(F[p])));

  function squared_distance(one, other, bytes) {
    const o = (other - one) >> 2;
    return sum_of(one, bytes, (total, p) => plusSquare(total, round(F[p] - F[p + o])));
  }

  function max_abs(x, bytes) {
    let largest = 0;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) largest = Math.max(largest, Math.abs(F[p]));
    return largest;
  }

  function count_abs(x, bytes, size) {
    let count = 0;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) if (Math.abs(F[p]) === size) count++;
    return count;
  }

  function histogram(x, rows, count, stride, bins, into) {
    const start = x >> 2, end = start + rows * stride, at = into >> 2;
    let low = F[start], high = low;
    for (let row = start; row < end; row += stride) {
      for (let p = row; p < row + count; p++) {
        if (F[p] < low) low = F[p];
        if (F[p] > high) high = F[p];
      }
    }
    const span = round(high - low), perUnit = round(bins / (span > 0 ? span : 1));
    U.fill(0, at, at + 4 * (bins + 2));
    F[at] = low;
    F[at + 1] = high;
    for (let row = start; row < end; row += stride) {
      for (let p = row; p < row + count; p++) {
        const scaled = round(round(F[p] - low) * perUnit);
        U[at + 4 + 4 * (scaled > bins ? bins : scaled | 0)]++;
      }
    }
  }

  // --- maps over a channel ---

  function affine(x, y, bytes, slope, shift) {
    const s = round(slope), t = round(shift), to = (y - x) >> 2;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) F[p + to] = round(F[p] * s) + t;
  }

  function combine(g, x, dx, bytes, a, b, c) {
    const u = round(a), v = round(b), w = round(c), from = (g - x) >> 2, to = (dx - x) >> 2;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) {
      F[p + to] = round(round(F[p + from] * u) + round(F[p] * v)) + w;
    }
  }

  function combine_sign(g, x, dx, bytes, a, b, c) {
    const u = round(a), v = round(b), w = round(c), from = (g - x) >> 2, to = (dx - x) >> 2;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) {
      const signed = F[p] > 0 ? v : F[p] < 0 ? -v : 0;
      F[p + to] = round(round(F[p + from] * u) + signed) + w;
    }
  }

  function combine_peak(g, x, dx, bytes, a, b, c, peak) {
    const u = round(a), v = round(b), w = round(c), from = (g - x) >> 2, to = (dx - x) >> 2;
    for (let p = x >> 2, end = p + (bytes >> 2); p < end; p++) {
      const up = F[p] === peak ? v : 0, down = F[p] === -peak ? v : 0;
      F[p + to] = round(round(F[p + from] * u) + (up - down)) + w;
    }
  }

  function multiply(g, s, bytes) {
    for (let p = g >> 2, q = s >> 2, end = p + (bytes >> 2); p < end; p++, q++) F[p] *= F[q];
  }

  // --- layer normalization ---

  const LONG = 128;

  function sample_moments(y, mean, inverse, count, pixel, eps) {
    const lanes = pixel >> 2, small = round(eps);
    for (let n = 0; n < lanes; n++) {
      const start = (y >> 2) + n;
      let total = 0;
      for (let i = 0; i < count; ) {
        let part = 0;
        for (const stop = Math.min(i + LONG, count); i < stop; i++) part = round(part + F[start + i * lanes]);
        total = round(total + part);
      }
      const centre = round(total / count);
      total = 0;
      for (let i = 0; i < count; ) {
        let part = 0;
        for (const stop = Math.min(i + LONG, count); i < stop; i++) {
          part = plusSquare(part, round(F[start + i * lanes] - centre));
        }
        total = round(total + part);
      }
      F[(mean >> 2) + n] = centre;
      F[(inverse >> 2) + n] = 1 / round(Math.sqrt(round(round(total / count) + small)));
    }
  }

  function sample_normalise(y, z, mean, inverse, gamma, beta, channels, pixels, pixel) {
    const lanes = pixel >> 2, m = mean >> 2, s = inverse >> 2, to = (z - y) >> 2;
    let p = y >> 2;
    for (let c = 0; c < channels; c++) {
      const slope = F[(gamma >> 2) + c], shift = F[(beta >> 2) + c];
      for (let i = 0; i < pixels; i++) {
        for (let n = 0; n < lanes; n++, p++) {
          F[p + to] = round(round(round(F[p] - F[m + n]) * F[s + n]) * slope) + shift;
        }
      }
    }
  }

  function sample_backward(y, dz, dy, hats, mean, inverse, gamma, means, channels, pixels, pixel) {
    const lanes = pixel >> 2, m = mean >> 2, s = inverse >> 2, slopes = gamma >> 2, size = channels * pixels;
    const dz_y = (dz - y) >> 2, dy_y = (dy - y) >> 2, hats_y = (hats - y) >> 2;
    const hat = (p, n) => round(round(F[p] - F[m + n]) * F[s + n]);
    for (let n = 0; n < lanes; n++) {
      let first = 0, second = 0;
      for (let c = 0; c < channels; c++) {
        const start = (y >> 2) + c * pixels * lanes + n;
        for (let i = 0; i < pixels; ) {
          let a = 0, b = 0;
          for (const stop = Math.min(i + LONG, pixels); i < stop; i++) {
            const p = start + i * lanes, g = F[p + dz_y], product = round(hat(p, n) * g);
            F[p + hats_y] = product;
            a = round(a + g);
            b = round(b + product);
          }
          first = round(first + round(F[slopes + c] * a));
          second = round(second + round(F[slopes + c] * b));
        }
      }
      F[(means >> 2) + n] = first / size;
      F[(means >> 2) + lanes + n] = second / size;
    }
    for (let c = 0, p = y >> 2; c < channels; c++) {
      for (let i = 0; i < pixels; i++) {
        for (let n = 0; n < lanes; n++, p++) {
          const own = round(round(F[slopes + c] * F[p + dz_y]) - F[(means >> 2) + n]);
          F[p + dy_y] = F[s + n] * round(own - round(hat(p, n) * F[(means >> 2) + lanes + n]));
        }
      }
    }
  }

  // --- noise ---

  const bits = new Int32Array(1);
  const real = new Float32Array(bits.buffer);
  const SHARE = 1 / 16777216; // 2^-24
  const LN2 = round(0.6931471805599453);
  const THIRD = round(1 / 3), FIFTH = round(1 / 5), SEVENTH = round(1 / 7), NINTH = round(1 / 9);
  const ROOT = round(0.7071067811865476), RIGHT_ANGLE = round(1.5707963267948966);
  const COSINE = [2.48015873015873e-5, -0.001388888888888889, 0.041666666666666664].map(round);
  const SINE = [-0.0001984126984126984, 0.008333333333333333, -0.16666666666666666].map(round);

  function logarithm(u) {
    real[0] = u;
    const e = (bits[0] - 0x3f3504f3) >> 23;
    bits[0] -= e << 23;
    const m = real[0], t = round(round(m - 1) / round(m + 1)), tt = round(t * t);
    let series = round(round(NINTH * tt) + SEVENTH);
    series = round(round(series * tt) + FIFTH);
    series = round(round(series * tt) + THIRD);
    series = round(round(series * tt) + 1);
    return round(round(e * LN2) + round(round(t + t) * series));
  }

  const rotate = (v, left) => (v << left) | (v >>> (32 - left));

  function next(state, lane) {
    const at = (state >> 2) + lane;
    const s1 = U[at + 4];
    let s0 = U[at] | 0, s2 = U[at + 8] ^ s0, s3 = U[at + 12] | 0;
    const drawn = (rotate((s0 + s3) | 0, 7) + s0) | 0;
    s3 ^= s1;
    U[at + 4] = s1 ^ s2;
    U[at] = s0 ^ s3;
    U[at + 8] = s2 ^ (s1 << 9);
    U[at + 12] = rotate(s3, 11);
    return drawn;
  }

  function disturb(a, s, m, bytes, state, low, width, sigma, spread) {
    const bottom = round(low), range = round(width), centre = round(sigma), deviation = round(spread);
    const to = (s - a) >> 2, moved = (m - a) >> 2;
    const put = (p, normal, drawn) => {
      const scale = round(round(normal * deviation) + centre);
      const shift = round(round(round((drawn >>> 8) * SHARE) * range) + bottom);
      F[p + to] = scale;
      F[p + moved] = shift;
      F[p] = round(scale * F[p]) + shift;
    };
    for (let start = a >> 2, end = start + (bytes >> 2); start < end; start += 8) {
      for (let lane = 0; lane < 4; lane++) {
        const u = ((next(state, lane) >>> 8) + 1) * SHARE;
        const radius = round(round(Math.sqrt(round(-2 * logarithm(u)))) * ROOT);
        const second = next(state, lane);
        const x = round(round((second >>> 8) * SHARE - 0.5) * RIGHT_ANGLE), xx = round(x * x);
        let cosine = round(round(COSINE[0] * xx) + COSINE[1]);
        cosine = round(round(cosine * xx) + COSINE[2]);
        cosine = round(round(cosine * xx) - 0.5);
        cosine = round(round(cosine * xx) + 1);
        let sine = round(round(SINE[0] * xx) + SINE[1]);
        sine = round(round(sine * xx) + SINE[2]);
        sine = round(x * round(round(sine * xx) + 1));
        const one = round(radius * round(cosine - sine)), other = round(radius * round(cosine + sine));
        put(start + lane, second & 1 ? -one : one, next(state, lane));
        put(start + lane + 4, second & 2 ? -other : other, next(state, lane));
      }
    }
  }

  function disturb_again(a, s, m, bytes) {
    const scale = (s - a) >> 2, shift = (m - a) >> 2;
    for (let p = a >> 2, end = p + (bytes >> 2); p < end; p++) F[p] = round(F[p + scale] * F[p]) + F[p + shift];
  }

  // --- steps ---

  function sgd(w, g, v, bytes, lr, momentum, decay) {
    const rate = round(lr), keep = round(momentum), shrink = round(decay);
    for (let p = w >> 2, q = g >> 2, r = v >> 2, end = p + (bytes >> 2); p < end; p++, q++, r++) {
      const force = round(F[q] + round(shrink * F[p]));
      F[r] = round(keep * F[r]) + force;
      F[p] -= round(rate * F[r]);
    }
  }

  function step_along(from, direction, to, bytes, length) {
    const t = round(length);
    for (let p = from >> 2, d = direction >> 2, q = to >> 2, end = p + (bytes >> 2); p < end; p++, d++, q++) {
      F[q] = F[p] - round(t * F[d]);
    }
  }

  return {
    correlate, weight_gradient, add_border,
    relu, relu_backward, relu_pool, relu_pool_backward,
    clear_padding, sum, sum_squared_deviations, sum_centred_products, sum_abs, max_abs, count_abs, histogram,
    affine, combine, combine_sign, combine_peak, multiply,
    sample_moments, sample_normalise, sample_backward,
    disturb, disturb_again, sgd, step_along, squared_distance,
  };
}
