// jax-js: jax.html?device=wasm or webgpu; the whole step is compiled. Its arrays are used up by what is
// computed from them; `.ref` keeps one.
import {
  defaultDevice,
  init,
  jit,
  lax,
  nn,
  numpy as np,
  valueAndGrad,
} from "../node_modules/@jax-js/jax/dist/index.js";
import { BATCH, CHANNELS, RATE, SIDE, offer } from "./work.js";

const device = new URLSearchParams(location.search).get("device");

async function make(norm, { parameters }) {
  if (!(await init(device)).includes(device)) throw new Error(`jax-js does not start ${device}.`);
  defaultDevice(device);
  const names = Object.keys(parameters);
  const entries = names.map((name) => [
    name,
    np.array(parameters[name].values).reshape(parameters[name].shape),
  ]);
  let weights = Object.fromEntries(entries);

  const perChannel = (values) => values.reshape([1, -1, 1, 1]);
  const overChannel = { keepdims: true };

  function batchNorm(y, gamma, beta) {
    const mean = np.mean(y.ref, [0, 2, 3], overChannel);
    const centred = y.sub(mean);
    const variance = np.mean(np.square(centred.ref), [0, 2, 3], overChannel);
    const scale = perChannel(gamma).div(np.sqrt(variance.add(1e-5)));
    return centred.mul(scale).add(perChannel(beta));
  }

  function loss(w, images, known) {
    let x = images;
    let side = SIDE;
    CHANNELS.forEach((channels, i) => {
      const at = i + 1;
      let y = lax.convGeneralDilated(x, w[`conv${at}.weight`], [1, 1], "SAME");
      y =
        norm === "batch"
          ? batchNorm(y, w[`norm${at}.weight`], w[`norm${at}.bias`])
          : y.add(perChannel(w[`conv${at}.bias`]));
      side /= 2;
      x = np.max(nn.relu(y).reshape([BATCH, channels, side, 2, side, 2]), [3, 5]);
    });
    const logits = np
      .dot(x.reshape([BATCH, -1]), np.transpose(w["classifier.weight"]))
      .add(w["classifier.bias"]);
    return np.mean(np.sum(nn.logSoftmax(logits).mul(known), 1)).mul(-1);
  }

  const update = jit((w, images, known) => {
    const kept = Object.fromEntries(names.map((name) => [name, w[name].ref]));
    const [value, gradients] = valueAndGrad(loss)(w, images, known);
    const moved = names.map((name) => [name, kept[name].sub(gradients[name].mul(RATE))]);
    return [value, Object.fromEntries(moved)];
  });

  let before = null;
  return {
    step([values, labels]) {
      before?.dispose();
      const images = np.array(values).reshape([BATCH, 1, SIDE, SIDE]);
      const hot = new Float32Array(10 * BATCH);
      labels.forEach((label, n) => (hot[10 * n + label] = 1));
      [before, weights] = update(weights, images, np.array(hot).reshape([BATCH, 10]));
      return before;
    },
    read: async (value) => (await value.ref.data())[0],
  };
}

offer(make);
