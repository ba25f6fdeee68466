// TensorFlow.js: tfjs.html?backend=cpu, webgl, webgpu or wasm; with `own`, wasm and a filter gradient made here
// of the back-end's own operations, without which it cannot train a convolution.
import { BATCH, RATE, SIDE, offer } from "./work.js";

const tf = window.tf;
const wanted = new URLSearchParams(location.search);
const backend = wanted.get("backend");
const MODULES = new URL("../node_modules/@tensorflow/", location.href).pathname;

// dL/dw [3, 3, inputs, outputs] = sum over images and pixels of x, moved by the tap, times dy.
const FILTER_GRADIENTS = {
  // Every tap's image beside the others (im2col), then one product. Written so that the product's factors need
  // no transposition, which would take the slow way.
  product(x, dy, [size, , inputs, outputs]) {
    const [images, height, width] = dy.shape;
    const rows = images * height * width;
    const border = [(size - 1) / 2, (size - 1) / 2];
    const padded = tf.pad(x, [[0, 0], border, border, [0, 0]]);
    const taps = [];
    for (let v = 0; v < size; v++) {
      for (let u = 0; u < size; u++)
        taps.push(tf.slice(padded, [0, v, u, 0], [images, height, width, inputs]));
    }
    const columns = tf.reshape(tf.concat(taps, 3), [rows, size * size * inputs]);
    const product = tf.matMul(tf.transpose(columns), tf.reshape(dy, [rows, outputs]));
    return tf.reshape(product, [size, size, inputs, outputs]);
  },
  // A convolution with dy as its filter, in which images and channels have changed places.
  convolution(x, dy, [size]) {
    const border = [(size - 1) / 2, (size - 1) / 2];
    const padded = tf.pad(tf.transpose(x, [3, 1, 2, 0]), [[0, 0], border, border, [0, 0]]);
    const result = tf.conv2d(padded, tf.transpose(dy, [1, 2, 0, 3]), 1, "valid");
    return tf.transpose(result, [1, 2, 0, 3]);
  },
};

async function make(norm, { parameters }) {
  if (backend === "wasm") tf.wasm.setWasmPaths(`${MODULES}tfjs-backend-wasm/dist/`);
  if (!(await tf.setBackend(backend))) throw new Error(`TensorFlow.js does not start ${backend}.`);
  await tf.ready();
  if (wanted.has("own")) {
    const gradient = FILTER_GRADIENTS[wanted.get("own")];
    const kernelFunc = ({ inputs: { x, dy }, attrs }) => tf.tidy(() => gradient(x, dy, attrs.filterShape));
    tf.registerKernel({ kernelName: "Conv2DBackpropFilter", backendName: "wasm", kernelFunc });
  }
  const variable = (name, move = (tensor) => tensor) =>
    parameters[name] ? tf.variable(move(tf.tensor(parameters[name].values, parameters[name].shape))) : null;
  const convolution = (number) => ({
    weight: variable(`conv${number}.weight`, (w) => tf.transpose(w, [2, 3, 1, 0])),
    bias: variable(`conv${number}.bias`),
    gamma: variable(`norm${number}.weight`),
    beta: variable(`norm${number}.bias`),
  });
  const layers = [convolution(1), convolution(2)];
  const pixels = SIDE / 4;
  // The engine's images are [channel][row][column], those here [row][column][channel].
  const turned = (w) =>
    tf.reshape(tf.transpose(tf.reshape(w, [10, -1, pixels, pixels]), [2, 3, 1, 0]), [-1, 10]);
  const weight = variable("classifier.weight", turned);
  const bias = variable("classifier.bias");

  function loss(images, labels) {
    let x = images;
    for (const layer of layers) {
      let y = tf.conv2d(x, layer.weight, 1, "same");
      if (norm === "batch") {
        const { mean, variance } = tf.moments(y, [0, 1, 2]);
        y = tf.batchNorm(y, mean, variance, layer.beta, layer.gamma, 1e-5);
      } else {
        y = tf.add(y, layer.bias);
      }
      x = tf.maxPool(tf.relu(y), 2, 2, "valid");
    }
    const logits = tf.add(tf.matMul(tf.reshape(x, [BATCH, -1]), weight), bias);
    return tf.losses.softmaxCrossEntropy(labels, logits);
  }

  const optimiser = tf.train.sgd(RATE);
  let before = null;
  return {
    step([values, labels]) {
      before?.dispose();
      before = tf.tidy(() => {
        const images = tf.tensor4d(values, [BATCH, SIDE, SIDE, 1]);
        const known = tf.oneHot(tf.tensor1d(labels, "int32"), 10).toFloat();
        return optimiser.minimize(() => loss(images, known), true);
      });
      return before;
    },
    read: async (value) => (await value.data())[0],
  };
}

offer(make);
