// Images for the lab. A page of the book brings them as a script of its own, a running notebook sends them on
// request: so they stand in no notebook, and MNIST is only loaded by those who choose it.

const WAIT = 20000; // milliseconds that a kernel may take to answer

// A loop: Uint8Array.from with a function takes twenty times as long, and the page would stand still.
function fromBase64(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * `about` ({height, width, classes, train, test, mean, deviation}) and the zlib-compressed bytes, first all
 * images, then all labels, become {about fields, train: {images, labels, scale, shift}, test: the same}.
 */
async function unpack(about, packed) {
  const bytes = await inflate(packed);
  const { height, width, train, test, mean, deviation } = about;
  const size = height * width;
  const total = train + test;
  if (bytes.length !== total * (size + 1)) throw new Error("the images are incomplete");
  const part = (start, end) => ({
    images: bytes.slice(start * size, end * size),
    labels: bytes.slice(total * size + start, total * size + end),
    scale: 1 / deviation,
    shift: -mean / deviation,
  });
  return { ...about, train: part(0, train), test: part(train, total) };
}

function fromKernel(model, name) {
  return new Promise((resolve, reject) => {
    const settle = () => {
      clearTimeout(timer);
      model.off("msg:custom", hear);
    };
    const hear = (content, buffers) => {
      if (content?.type !== "data" || content.name !== name) return;
      settle();
      if (content.problem) reject(new Error(content.problem));
      else {
        const { buffer, byteOffset, byteLength } = buffers[0];
        resolve([
          content.about,
          buffer ? new Uint8Array(buffer, byteOffset, byteLength) : new Uint8Array(buffers[0]),
        ]);
      }
    };
    const timer = setTimeout(() => {
      settle();
      reject(new Error("no kernel answered; run the cell again"));
    }, WAIT);
    model.on("msg:custom", hear);
    model.send({ type: "data", name });
  });
}

/** Whether the page brings the images; else a kernel has them. */
export const brought = () => Boolean(window.bnlibLabData);

/** Which sets there are: what the book's page brings, or all, if a kernel can be asked. */
export const available = () => window.bnlibLabData?.names ?? ["digits", "mnist"];

/** The set `name`, each only once per page. Rejects with the reason. */
export function loader(model) {
  const loaded = new Map();
  return (name) => {
    if (!loaded.has(name)) {
      const packet = brought()
        ? window.bnlibLabData.load(name).then(({ about, packed }) => [about, fromBase64(packed)])
        : fromKernel(model, name);
      const ready = packet.then(([about, packed]) => unpack(about, packed));
      ready.catch(() => loaded.delete(name)); // the next try may succeed
      loaded.set(name, ready);
    }
    return loaded.get(name);
  };
}
