// node build.mjs [folder]: builds engine.wasm and engine.js, by default into ../bnlib/lab.
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

/** All of src/ in one module: a worker that starts from a Blob URL cannot import others. */
async function bundle() {
  await build({
    entryPoints: [join(here, "src", "engine.js")],
    outfile: join(target, "engine.js"),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    logLevel: "warning",
  });
}

mkdirSync(target, { recursive: true });
await Promise.all([compile(), bundle()]);
