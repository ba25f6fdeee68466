// The lab as the book shows it, every section of charts open, and what a reader would feel of it.
// The address says which networks: lab.html?norms=none,batch&every=10, and plain=1 for plain JavaScript.
import lab from "/bnlib/lab/lab.js";

const wanted = new URLSearchParams(location.search);
const networks = wanted
  .get("norms")
  .split(",")
  .map((norm) => ({ norm, where: "every", lr: 0.1, depth: 2 }));
const state = {
  data: "mnist",
  channels: 8,
  batch: 64,
  steps: 5000,
  every: Number(wanted.get("every")),
  networks,
};
const model = { get: (key) => ({ state })[key], set() {}, save_changes() {}, on() {}, off() {} };

window.bnlibLabData = { names: ["mnist"], load: async () => window.benchmarkImages };

// What the workers report, with the time at which it reaches the page.
const heard = [];
const Normal = window.Worker;
window.Worker = class extends Normal {
  constructor(...rest) {
    super(...rest);
    const network = Worker.count++;
    this.addEventListener("message", ({ data: { type, time, losses } }) => {
      if (type === "metrics")
        heard.push({ network, at: performance.now(), time: time + losses.length, losses });
    });
  }
  postMessage(message, ...rest) {
    super.postMessage(
      wanted.has("plain") && message.type === "create" ? { ...message, wasm: null } : message,
      ...rest,
    );
  }
};
window.Worker.count = 0;

const root = document.querySelector("#lab");
lab.render({ model, el: root });
for (const section of root.querySelectorAll("details[data-view]")) section.open = true;
const mounted = performance.now();

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const button = () => root.querySelector(".bnlab-run");

/** When the page first shows a step that was trained, in a frame that has been drawn. */
const firstNumber = () =>
  new Promise((resolve) => {
    const status = root.querySelector(".bnlab-status");
    const watch = new MutationObserver(() => {
      if (!/Step [1-9]/.test(status.textContent)) return;
      watch.disconnect();
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    });
    watch.observe(status, { childList: true, characterData: true, subtree: true });
  });

/**
 * Press Run, wait for the first number, then `warmUp` and `seconds` more, and press Pause. All times in
 * milliseconds, rates in steps per second, one for each network.
 */
window.measure = async (warmUp, seconds) => {
  let longest = 0;
  let last = performance.now();
  let ticking = true;
  const tick = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (ticking) setTimeout(tick, 1);
  };
  tick();
  await wait(50);
  const first = firstNumber();
  longest = 0;
  const clicked = performance.now();
  button().click();
  const drawn = await first;
  const gapStart = longest;
  longest = 0;
  await wait(1000 * warmUp);
  const from = performance.now();
  await wait(1000 * seconds);
  const until = performance.now();
  ticking = false;
  button().click();
  while (root.querySelector(".bnlab").dataset.state !== "idle") await wait(20);

  const rates = networks.map((_, network) => {
    const inside = heard.filter((one) => one.network === network && one.at >= from && one.at <= until);
    const [begin, end] = [inside.at(0), inside.at(-1)];
    return (1000 * (end.time - begin.time)) / (end.at - begin.at);
  });
  const losses = networks.map((_, network) =>
    heard
      .filter((one) => one.network === network)
      .at(-1)
      .losses.at(-1),
  );
  return {
    rates,
    losses,
    gapStart,
    gap: longest,
    sinceClick: drawn - clicked,
    sinceLoad: drawn - clicked + mounted,
  };
};
