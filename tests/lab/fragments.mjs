// Reads one fragment or state per line and answers what the lab makes of it, for tests/test_fuzz.py.
//
//     {"fragment": "#lab=1&..."} -> {"found": {state, notices} or null}
//     {"state": {...}}           -> {"found": {state, notices} of the state's own link}
//
// Every state found is also described to the engine, which throws where it cannot build the network.
import { createInterface } from "node:readline";

const [ui, engine] = process.argv.slice(2);
const lab = await import(`${ui}/state.js`);
const { makePlan } = await import(`${engine}/plan.js`);

console.log(
  JSON.stringify({
    data: Object.keys(lab.DATA),
    norms: lab.NORMS,
    places: Object.keys(lab.PLACES),
    presets: Object.keys(lab.PRESETS),
    ranges: lab.RANGES,
    networkRanges: lab.NETWORK_RANGES,
    most: lab.MOST_NETWORKS,
  }),
);

const sizes = { digits: 8, mnist: 28 };
for await (const line of createInterface({ input: process.stdin })) {
  const { fragment, state } = JSON.parse(line);
  let answer;
  try {
    const found = lab.fromFragment(fragment ?? lab.toFragment(state));
    for (const network of found?.state.networks ?? []) {
      const size = sizes[found.state.data];
      makePlan(lab.describe(found.state, network, { height: size, width: size, classes: 10 }));
    }
    answer = { found };
  } catch (error) {
    answer = { thrown: String(error.stack) };
  }
  console.log(JSON.stringify(answer));
}
