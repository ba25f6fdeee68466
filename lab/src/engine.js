// The entrance: what a page or a test can import. In a worker it listens for messages by itself.
import { createNetwork } from "./network.js";
import { LabError } from "./plan.js";
import { NORMS } from "./norms.js";
import { Random } from "./random.js";
import { exponential, logarithm } from "./loss.js";
import { PROBES, serve } from "./worker.js";

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) serve(self);

export { LabError, NORMS, PROBES, Random, createNetwork, exponential, logarithm, serve };
