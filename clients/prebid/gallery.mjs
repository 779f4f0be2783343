// Shows banners in a headless Chromium and prints the measurements of their texts as one line of JSON.
//
//   node gallery.mjs --banners banners.json [--screenshot gallery.png]
//
// The file is a list of {"name", "width", "height", "html"}. The browser has no network.
import fs from "node:fs/promises";
import { parseArgs } from "node:util";
import { withBrowser } from "./browser.mjs";

const { values: flags } = parseArgs({ options: { banners: { type: "string" }, screenshot: { type: "string" } } });
const banners = JSON.parse(await fs.readFile(flags.banners, "utf8"));
await withBrowser(async (browser) => {
  const page = await browser.newPage();
  await page.setViewport({ width: 1560, height: 800 });
  const figures = banners.map(({ name, width, height, html }) =>
    `<figure><iframe title="${name}" width="${width}" height="${height}" srcdoc="${escaped(frame(html))}"></iframe>
     <figcaption>${name}</figcaption></figure>`);
  await page.setContent(`<!doctype html><style>body{display:flex;flex-wrap:wrap;gap:14px;font:12px sans-serif;margin:14px}
    figure{margin:0}iframe{border:0;display:block}</style>${figures.join("")}`, { waitUntil: "load" });
  const seen = [];
  for (const [number, element] of (await page.$$("iframe")).entries()) {
    seen.push({ name: banners[number].name, ...(await (await element.contentFrame()).evaluate(measure)) });
  }
  if (flags.screenshot) await page.screenshot({ path: flags.screenshot, fullPage: true });
  console.log(JSON.stringify(seen));
}, { args: ["--proxy-server=http://127.0.0.1:9"] });

/** Returns, for each text, its box, whether it is cut, its font size in pixels and its direction. */
function measure() {
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    if (!text) continue;
    const element = walker.currentNode.parentElement;
    const clip = element.closest("[style*=overflow]") ?? element;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    const [box, outer] = [range.getBoundingClientRect(), clip.getBoundingClientRect()];
    const px = parseFloat(getComputedStyle(element).fontSize);
    texts.push({
      text,
      left: Math.max(box.left, outer.left), right: Math.min(box.right, outer.right),
      top: Math.max(box.top, outer.top), bottom: Math.min(box.bottom, outer.bottom),
      isCut: clip.scrollHeight > clip.clientHeight + px / 2 || clip.scrollWidth > clip.clientWidth,
      px,
      direction: getComputedStyle(element).direction,
    });
  }
  return { texts, width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight };
}

function frame(html) {
  return `<!doctype html><body style="margin:0">${html}`;
}

function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
}
