// Softmax cross-entropy, in float64. It touches so few numbers that both back-ends share it. Math.exp and
// Math.log may differ in the last bit from browser to browser; these do not.

const LN2 = 0.6931471805599453;

/** e^x for x <= 0: x = k ln 2 + r, the series for e^r, then k halvings. */
export function exponential(x) {
  if (!(x > -700)) return x <= -700 ? 0 : NaN;
  const k = Math.round(-x / LN2);
  const r = x + k * LN2;
  let series = 1;
  for (let i = 14; i > 0; i--) series = 1 + (r / i) * series;
  for (let left = k; left > 0; left -= 30) series /= 1 << Math.min(30, left);
  return series;
}

/** ln x for finite x >= 1: x = 2^k m with m about 1, and ln m = 2 artanh((m - 1) / (m + 1)). */
export function logarithm(x) {
  let m = x;
  let k = 0;
  for (; m > 1.4142135623730951; m /= 2) k++;
  const t = (m - 1) / (m + 1);
  const tt = t * t;
  let series = 0;
  for (let i = 21; i > 0; i -= 2) series = series * tt + 1 / i;
  return k * LN2 + 2 * t * series;
}

/**
 * The mean over a batch of -ln softmax(logits)[label], in nats, its gradient, and how many images are
 * classified right.
 *
 * `logits` and `gradient` are positions in the float32 array `F`, laid out [classes][lanes]; of the lanes the
 * first `count` are images. gradient = (softmax - [class = label]) / count, and zero beyond; position 0: none.
 */
export function crossEntropy(F, logits, gradient, labels, classes, count, lanes) {
  const powers = new Float64Array(classes);
  let loss = 0;
  let right = 0;
  for (let n = 0; n < count; n++) {
    let largest = F[logits + n];
    let best = 0;
    for (let c = 1; c < classes; c++) {
      const value = F[logits + c * lanes + n];
      if (value > largest || value !== value) [largest, best] = [value, c];
    }
    let total = 0;
    for (let c = 0; c < classes; c++) {
      powers[c] = exponential(F[logits + c * lanes + n] - largest);
      total += powers[c];
    }
    loss += total === total ? logarithm(total) + largest - F[logits + labels[n] * lanes + n] : NaN;
    for (let c = 0; gradient && c < classes; c++) {
      F[gradient + c * lanes + n] = (powers[c] / total - (c === labels[n] ? 1 : 0)) / count;
    }
    if (best === labels[n]) right++;
  }
  for (let c = 0; gradient && c < classes; c++) {
    F.fill(0, gradient + c * lanes + count, gradient + (c + 1) * lanes);
  }
  return { loss: loss / count, right };
}
