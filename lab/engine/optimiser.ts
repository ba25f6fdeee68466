// Stochastic gradient descent as torch.optim.SGD: v <- momentum * v + (g + decay * w), w <- w - lr * v.

/** One step for all parameters at once: they lie in one block, and so do gradients and velocities. */
export function sgd(w: usize, g: usize, v: usize, bytes: i32, lr: f32, momentum: f32, decay: f32): void {
  const rate = f32x4.splat(lr);
  const keep = f32x4.splat(momentum);
  const shrink = f32x4.splat(decay);
  for (let i: usize = 0; i < <usize>bytes; i += 16) {
    const weight = v128.load(w + i);
    const force = f32x4.add(v128.load(g + i), f32x4.mul(shrink, weight));
    const velocity = f32x4.add(f32x4.mul(keep, v128.load(v + i)), force);
    v128.store(v + i, velocity);
    v128.store(w + i, f32x4.sub(weight, f32x4.mul(rate, velocity)));
  }
}
