// Bundles page.html and page.mjs into dist/. `--serve` also rebuilds on changes and serves them at
// http://127.0.0.1:8090/page.html.
import path from "node:path";
import esbuild from "esbuild";

const root = import.meta.dirname;
const isServed = process.argv.includes("--serve");
const context = await esbuild.context({
  entryPoints: [path.join(root, "page.mjs"), path.join(root, "page.html")],
  outdir: path.join(root, "dist"),
  bundle: true,
  format: "iife",
  target: "es2022",
  loader: { ".html": "copy" },
  logLevel: isServed ? "warning" : "info",
});
if (isServed) {
  await context.watch();
  const { port } = await context.serve({ host: "127.0.0.1", port: 8090, servedir: path.join(root, "dist") });
  console.log(`the page: http://127.0.0.1:${port}/page.html?user=household-6 (Ctrl+C ends it)`);
} else {
  await context.rebuild();
  await context.dispose();
}
