// Opens the status page in a headless Chromium, as an operator does, and prints what is on it as one line of JSON.
//
//   node status.mjs --page http://127.0.0.1:8081 --key KEY [--screenshot status.png] [--width 1280] [--dark]
//
// Set LANG to see the page in another locale. Without --screenshot the page is measured on a desktop and on a phone, with
// a fault in its numbers, and without JavaScript.
import { parseArgs } from "node:util";
import { withBrowser } from "./browser.mjs";

const { values: flags } = parseArgs({
  options: {
    page: { type: "string", default: "http://127.0.0.1:8081" },
    key: { type: "string", default: "" },
    screenshot: { type: "string" },
    width: { type: "string", default: "1280" },
    dark: { type: "boolean", default: false },
  },
});
const WIDTHS = { desktop: 1280, phone: 390 };
await withBrowser(async (browser) => {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: flags.dark ? "dark" : "light" }]);
  await open(page, Number(flags.width), "/status");
  await page.type("#key", flags.key);
  await Promise.all([page.waitForNavigation(), page.click(".login button")]);
  if (flags.screenshot) {
    await open(page, Number(flags.width));
    await page.screenshot({ path: flags.screenshot, fullPage: true });
  } else {
    console.log(JSON.stringify(await visit(page, errors)));
  }
});

async function open(page, width) {
  await page.setViewport({ width, height: 900 });
  await page.goto(`${flags.page}/status`, { waitUntil: "load" });
}

async function visit(page, errors) {
  const seen = {};
  for (const [name, width] of Object.entries(WIDTHS)) {
    await open(page, width);
    await page.waitForSelector("[data-chart] canvas");
    seen[name] = await page.evaluate(measure);
  }
  seen.errors = [...errors];
  await page.evaluate(() => {
    document.getElementById("series").dataset.series = "{";
    document.dispatchEvent(new Event("htmx:after:swap"));
  });
  await page.waitForFunction(() => !document.getElementById("script-error").hidden);
  seen.scriptError = await page.$eval("#script-error", (line) => line.innerText);
  await page.setJavaScriptEnabled(false);
  await open(page, WIDTHS.phone);
  seen.plain = await page.$eval("body", (body) => body.innerText);
  return seen;
}

/** Returns the language, the excess of the content over the window in pixels, and the runs of colour in each chart. */
function measure() {
  const CSS_COLOURS = ["--one", "--two", "--three"];
  const excess = document.documentElement.scrollWidth - innerWidth;
  const charts = {};
  for (const place of document.querySelectorAll("[data-chart]")) {
    const canvas = place.querySelector("canvas");
    const { width, height, data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    charts[place.dataset.chart] = Object.fromEntries(CSS_COLOURS.map((name) => {
      const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
      const wanted = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
      const isOf = (at) => data[at + 3] > 128 && wanted.every((value, band) => Math.abs(value - data[at + band]) < 24);
      const runs = [];
      for (let x = 0; x < width; x++) {
        let isPainted = false;
        for (let y = 0; y < height && !isPainted; y++) isPainted = isOf(4 * (y * width + x));
        const last = runs.at(-1);
        if (isPainted && last?.[1] === x) last[1] = x + 1;
        else if (isPainted) runs.push([x, x + 1]);
      }
      return [name, runs];
    }));
  }
  const notices = [...document.querySelectorAll(".notice")].filter((line) => line.offsetParent).map((line) => line.innerText);
  return { language: navigator.language, excess, charts, notices, legend: document.querySelector(".u-legend")?.innerText };
}
