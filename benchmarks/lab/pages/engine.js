// The lab's engine without the lab, as the peers are measured: engine.html?backend=wasm or plain.
import { createNetwork } from "/bnlib/lab/engine.js";
import { offer } from "./work.js";

const backend = new URLSearchParams(location.search).get("backend");

async function make(_, { description, data }) {
  const bytes = backend === "wasm" ? await (await fetch("/bnlib/lab/engine.wasm")).arrayBuffer() : null;
  const network = await createNetwork(description, data, bytes);
  if (network.backend !== backend) throw new Error(`The engine does not start ${backend}.`);
  return { step: () => network.step().loss, read: async (loss) => loss };
}

offer(make);
