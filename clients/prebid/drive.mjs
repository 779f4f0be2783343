// Opens the page in a headless Chromium and prints bids, banners, events and errors as one line of JSON.
//
//   node drive.mjs --bidder http://127.0.0.1:8080 --scenario all [--user u1] [--vendor 1] [--screenshot page.png]
//                 [--publisher http://garden.example]
//
// The browser connects through a proxy of this process. The proxy serves the page for the publisher's host, forwards
// and records requests to the bidder, and serves an empty landing page for any other http host. It refuses https.
import fs from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { withBrowser } from "./browser.mjs";

const SCENARIOS = {
  absent: { consent: "absent" }, // no consent manager on the page
  all: { consent: "all" },
  phone: { consent: "all", width: 390 },
  contextual: { consent: "contextual" }, // purpose 2 only
  refused: { consent: "refused" },
  us: { consent: "us" }, // GPP, the section of the United States
  "us-opted-out": { consent: "us-opted-out" },
  gpc: { consent: "us", headers: { "Sec-GPC": "1" } }, // a browser with Global Privacy Control
  floor: { consent: "all", floor: "1000000" }, // a CPM above every bid
};
const TIMEOUT_MS = 60_000; // enough for a slow machine
const QUIET_MS = 1000; // after so long without a request, the page has sent all of its events

const { values: flags } = parseArgs({
  options: {
    bidder: { type: "string" },
    scenario: { type: "string", default: "all" },
    user: { type: "string" },
    publisher: { type: "string", default: "http://garden.example" }, // the page's origin; the bidder must allow it
    vendor: { type: "string", default: "1" },
    screenshot: { type: "string" },
  },
});
if (!flags.bidder || !(flags.scenario in SCENARIOS)) {
  console.error(`--bidder URL --scenario ${Object.keys(SCENARIOS).join(" | ")}`);
  process.exit(2);
}

const proxy = await startProxy(new URL(flags.bidder));
try {
  const result = await withBrowser(visit, {
    timeout: TIMEOUT_MS,
    args: [
      `--proxy-server=http://127.0.0.1:${proxy.port}`,
      "--proxy-bypass-list=<-loopback>", // loopback goes through the proxy too
      "--disable-quic",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  console.log(JSON.stringify(result));
} finally {
  proxy.close();
}

async function visit(browser) {
  const page = await browser.newPage();
  const { width = 1120, headers = {}, ...scenario } = SCENARIOS[flags.scenario];
  await page.setViewport({ width, height: 760 });
  await page.setExtraHTTPHeaders(headers);
  const consoleErrors = [];
  page.on("console", (message) => message.type() === "error" && consoleErrors.push(message.text()));
  page.on("pageerror", (error) => consoleErrors.push(String(error)));

  const query = { bidder: flags.bidder, vendor: flags.vendor, timeout: TIMEOUT_MS / 2, ...scenario };
  if (flags.user) query.user = flags.user;
  await page.goto(`${flags.publisher}/page.html?${new URLSearchParams(query)}`);
  await page.waitForFunction("window.auction?.isOver", { timeout: TIMEOUT_MS }).catch((error) => {
    throw new Error(`the auction did not end; page errors: ${consoleErrors.join("; ") || "none"}`, { cause: error });
  });
  await proxy.quiet();

  const { bids, errors } = await page.evaluate("window.auction");
  const banners = await readBanners(page);
  const slots = await page.$$eval(".ad", (elements) => Object.fromEntries(
    elements.map((slot) => [slot.id, slot.hidden ? 0 : slot.querySelectorAll("iframe").length])));
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  const reasons = await page.$$eval(".ad details", (elements) => Object.fromEntries(elements.map((details) => {
    const { innerText: reason, clientHeight } = details.querySelector("summary");
    details.open = true;
    const facts = details.querySelector("dl").innerText;
    details.open = false;
    return [details.parentElement.id, { reason, facts, clientHeight }];
  })));
  if (flags.screenshot) await page.screenshot({ path: flags.screenshot });
  const landed = await click(banners[0]);
  await proxy.quiet();
  return {
    scenario: flags.scenario,
    bids,
    rendered: banners.map(({ slot, size, text, html }) => ({ slot, size, text, html })),
    overflow, // pixels by which the content is wider than the window
    reasons, // slot -> why its ad is shown
    slots, // slot -> number of visible frames
    landed,
    events: proxy.seen.filter(({ url }) => url.pathname.startsWith("/e/")).map((event) => ({
      kind: event.url.pathname.slice(3), ...event,
    })),
    auctions: proxy.seen.filter(({ url }) => url.pathname.startsWith("/openrtb2/")),
    consoleErrors,
    prebidErrors: errors,
  };
}

/** Returns the documents with content inside the page's slots. Prebid puts the banner into a frame inside ours. */
async function readBanners(page) {
  const banners = [];
  for (const frame of page.frames()) {
    const [text, html, size] = await frame.evaluate(() => [
      document.body.innerText.trim(), document.body.innerHTML, [innerWidth, innerHeight],
    ]);
    if (frame.childFrames().length || frame === page.mainFrame() || !html.trim()) continue;
    let outer = frame;
    while (outer.parentFrame() !== page.mainFrame()) outer = outer.parentFrame();
    const slot = await (await outer.frameElement()).evaluate((element) => element.parentElement.id);
    banners.push({ slot, size, text, html, frame });
  }
  return banners;
}

/** Clicks a banner; returns the URL of the landing page, even if that host does not answer; null without a link. */
async function click(banner) {
  const link = await banner?.frame.$("a[href]");
  if (!link) return null;
  const opened = new Promise((resolve) => link.frame.page().browser().once("targetcreated", resolve));
  await link.click();
  const tab = await Promise.race([opened, sleep(5000, null, { ref: false }).then(() => link.frame.page().target())]);
  await proxy.quiet();
  const { entries, currentIndex } = await (await tab.createCDPSession()).send("Page.getNavigationHistory");
  return entries[currentIndex].url;
}

/** Starts the proxy. `seen` records the bidder's traffic in order; `quiet()` waits until there is none. */
async function startProxy(bidder) {
  const seen = [];
  let open = 0;
  let last = Date.now();
  const server = http.createServer(async (request, response) => {
    const url = new URL(request.url, flags.publisher);
    open += 1;
    response.on("close", () => { open -= 1; last = Date.now(); });
    if (url.origin === bidder.origin) forward(url, request, response, seen);
    else if (url.origin === flags.publisher) await sendFile(url.pathname, response);
    else response.setHeader("content-type", "text/html").end(`<!doctype html><title>${url.host}</title>`);
  });
  server.on("connect", (_request, socket) => socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    seen,
    port: server.address().port,
    async quiet() {
      last = Date.now();
      while (open || Date.now() - last < QUIET_MS) await sleep(50);
    },
    close: () => { server.close(); server.closeAllConnections(); },
  };
}

function forward(url, request, response, seen) {
  const { method, headers } = request;
  const entry = { method, url, status: null, cors: {}, location: null };
  seen.push(entry);
  const upstream = http.request(url, { method, headers }, (answer) => {
    entry.status = answer.statusCode;
    entry.location = answer.headers.location ?? null;
    const isCors = ([name]) => name.startsWith("access-control-");
    entry.cors = Object.fromEntries(Object.entries(answer.headers).filter(isCors));
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  upstream.on("error", () => response.destroy());
  request.pipe(upstream);
}

async function sendFile(name, response) {
  const types = { ".html": "text/html", ".js": "text/javascript" };
  const content = await fs.readFile(path.join(import.meta.dirname, "dist", path.basename(name))).catch(() => null);
  if (content) response.setHeader("content-type", types[path.extname(name)]).end(content);
  else response.writeHead(404).end();
}
