// Random numbers. Every stream is named by what it is for and is a function of its name alone, such as (seed,
// "weights", layer) or (seed, "noise", layer, step): whatever else happens, a network draws the same numbers.
// So networks with the same seed start from the same weights and see the same batches, and a probe that
// repeats a step meets the noise of that step.

/** What a stream is for. */
export const STREAM = { weights: 1, order: 2, noise: 3, lanes: 4 };

/** A scrambling of 32 bits that can be undone: the finaliser of MurmurHash3 (Appleby). */
function scramble(h) {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

const rotate = (v, left) => (v << left) | (v >>> (32 - left));

/** The four words of state that belong to a stream's name. */
export function stateOf(...name) {
  const state = new Int32Array(4);
  for (let i = 0; i < 4; i++) {
    let h = scramble(0x9e3779b9 + i);
    for (const word of name) h = scramble((h ^ word) + 0x9e3779b9);
    state[i] = h;
  }
  if (!state.some(Boolean)) state[0] = 1; // the one state that the generator would never leave
  return state;
}

/** xoshiro128++ (Blackman and Vigna 2019). */
export class Random {
  constructor(...name) {
    this.state = stateOf(...name);
  }

  /** 32 random bits, as an integer from 0 to 2^32 - 1. */
  bits() {
    const s = this.state;
    const drawn = (rotate((s[0] + s[3]) | 0, 7) + s[0]) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 11);
    return drawn;
  }

  /** A number in [low, high), one of 2^32 evenly spaced ones. */
  uniform(low, high) {
    return low + (high - low) * (this.bits() / 4294967296);
  }

  /** The numbers 0 to count - 1 in random order (Fisher and Yates). */
  permutation(count) {
    const order = Uint32Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = Math.floor(this.uniform(0, i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}
