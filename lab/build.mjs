// node build.mjs [folder]: builds engine.wasm, engine.js and, out of both and src/ui, lab.js, by default into
// ../bnlib/lab.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2] ?? join(here, "..", "bnlib", "lab");

/** AssemblyScript -> WebAssembly with SIMD, memory from outside, no run-time library. */
async function compile() {
  const { error, stderr } = await asc.main(
    [
      "engine/index.ts",
      "--outFile",
      "engine.wasm",
      "--optimizeLevel",
      "3",
      "--noAssert",
      "--runtime",
      "stub",
      "--use",
      "abort=",
      "--importMemory",
      "--noExportMemory",
      "--enable",
      "simd",
    ],
    {
      readFile: (name) => {
        try {
          return readFileSync(join(here, name), "utf8");
        } catch {
          return null; // the compiler asks for several names and takes the first that exists
        }
      },
      writeFile: (name, content) => writeFileSync(join(target, name), content),
      listFiles: () => [],
    },
  );
  if (error) throw new Error(`${error.message}\n${stderr}`);
}

/** All of the engine in one file: a worker that starts from a Blob URL cannot import others. */
const engine = (format) =>
  build({
    entryPoints: [join(here, "src", "engine.js")],
    bundle: true,
    minify: true,
    format,
    target: "es2022",
    logLevel: "warning",
    write: false,
  }).then(({ outputFiles: [file] }) => file.contents);

/**
 * What src/ui imports as "lab:engine", the text of a worker, and as "lab:wasm", its bytes. The worker is a
 * classic one: browsers refuse module workers to a page that is opened from disk.
 */
const built = {
  name: "built",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^lab:/ }, ({ path }) => ({ path, namespace: "lab" }));
    onLoad({ filter: /.*/, namespace: "lab" }, async ({ path }) =>
      path === "lab:engine"
        ? { contents: await engine("iife"), loader: "text" }
        : { contents: readFileSync(join(target, "engine.wasm")), loader: "binary" },
    );
  },
};

/** The widget in one module: it asks nobody for anything. */
async function bundleLab() {
  await build({
    entryPoints: [join(here, "src", "ui", "lab.js")],
    outfile: join(target, "lab.js"),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    logLevel: "warning",
    plugins: [built],
  });
}

mkdirSync(target, { recursive: true });
await compile();
writeFileSync(join(target, "engine.js"), await engine("esm"));
await bundleLab();
