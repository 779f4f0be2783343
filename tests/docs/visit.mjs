// Opens every page of a built site from its folder, as wide as a phone, and prints one line of JSON:
// pages that are wider than the screen, errors, requests that leave the folder, and the hits of a search.
//
//   node visit.mjs SITE WORD
import fs from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { withBrowser } from "./browser.mjs";

const [site, word] = process.argv.slice(2);
const root = pathToFileURL(path.join(site, path.sep)).href;
const report = { pages: 0, wide: [], errors: [], outside: [], hits: 0 };

// The page of a server for a wrong address; its links begin at the root.
const isPage = (name) => name.endsWith(".html") && name !== "404.html";

await withBrowser(async (chromium) => {
  const page = await chromium.newPage();
  await page.setViewport({ width: 390, height: 844 });
  page.on("pageerror", (error) => report.errors.push(`${page.url()}: ${error.message}`));
  page.on("requestfailed", (request) => report.errors.push(`${request.url()}: ${request.failure()?.errorText}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(root) && !/^(data|blob|about):/.test(url)) report.outside.push(url);
  });
  for (const file of (await fs.readdir(site, { recursive: true })).filter(isPage)) {
    await page.goto(new URL(file, root).href, { waitUntil: "load" });
    report.pages += 1;
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    if (width > 390) report.wide.push(`${file}: ${width} px`);
  }
  await page.goto(new URL("glossary.html", root).href, { waitUntil: "load" });
  await page.evaluate(() => document.querySelector("#__search").click());
  await page.type("input[name=query]", word);
  await page.waitForSelector(".md-search-result__item", { timeout: 60_000 });
  report.hits = await page.$$eval(".md-search-result__item", (items) => items.length);
}, { args: ["--disable-gpu"] });
console.log(JSON.stringify(report));
