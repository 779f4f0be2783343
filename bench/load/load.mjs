// Sends unique bid requests at a fixed rate and prints latencies, bids and errors as one line of JSON.
//
//   node load.mjs < {"url", "rate", "seconds", "body", "users" or "user_ids", "inside_ms"}
//
// Each request fills @NUMBER@ and @USER@ in `body`: users by Zipf's law among `users` (user-0 is the most frequent), or
// uniformly among `user_ids`. autocannon sends a connection's share of the rate in one burst each second. So every
// connection has one request a second, and connections start one after the other, a few hundred a second, in a ramp
// that is not counted: arrivals are even and do not wait for responses. Milliseconds are the client's, from the write
// to the end of the response.
import autocannon from "autocannon";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

const SLOTS = 100; // connection starts per second
const OPENED = 300; // new connections per second
const TIMEOUT_S = 5;

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const options = JSON.parse(Buffer.concat(chunks));
const parts = options.body.split(/(@NUMBER@|@USER@)/);
const rampS = Math.ceil(options.rate / OPENED);
const run = `${process.pid}-${Date.now().toString(36)}`;
const responses = []; // [sent ms, latency ms, status, bids]
let number = 0;
let sent = 0;
let startMs = 0;

// Excludes the ramp, and late requests of connections that had to wait for responses.
const isCounted = (sentMs) => sentMs >= 1000 * rampS && sentMs < 1000 * (rampS + options.seconds);

const request = {
  setupRequest(request, context) {
    const user = options.user_ids
      ? options.user_ids[Math.floor(Math.random() * options.user_ids.length)]
      : `user-${Math.floor(options.users ** Math.random()) - 1}`;
    const values = { "@NUMBER@": `${run}-${number++}`, "@USER@": user };
    context.sentMs = performance.now() - startMs;
    if (isCounted(context.sentMs)) sent += 1;
    return { ...request, body: parts.map((part) => values[part] ?? part).join("") };
  },
  onResponse(status, body, context) {
    if (!isCounted(context.sentMs)) return;
    const latencyMs = performance.now() - startMs - context.sentMs;
    responses.push([context.sentMs, latencyMs, status, body.split('"impid"').length - 1]);
  },
};

const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
startMs = performance.now();
const before = process.cpuUsage();
const runs = [];
const slots = SLOTS * rampS;
for (let slot = 0; slot < slots; slot++) {
  const connections = Math.floor(((slot + 1) * options.rate) / slots) - Math.floor((slot * options.rate) / slots);
  if (!connections) continue;
  await sleep((slot * 1000) / SLOTS - (performance.now() - startMs));
  runs.push(
    autocannon({
      url: options.url,
      method: "POST",
      headers: { "content-type": "application/json" },
      connections,
      overallRate: connections,
      amount: connections * (options.seconds + rampS - Math.floor(slot / SLOTS)),
      timeout: TIMEOUT_S,
      requests: [request],
    }),
  );
}
const results = await Promise.all(runs);
const cpu = process.cpuUsage(before);

const latencies = responses.map(([, ms]) => ms).sort((a, b) => a - b);
const withBids = responses.filter(([, , status, bids]) => status === 200 && bids > 0);
const at = (values, share) => values[Math.min(values.length - 1, Math.floor(share * values.length))] ?? null;
const seconds = Array.from({ length: options.seconds }, (_, second) => {
  const inSecond = responses.filter(([sentMs]) => Math.floor(sentMs / 1000) === second + rampS);
  const sorted = inSecond.map(([, ms]) => ms).sort((a, b) => a - b);
  return { p99_ms: at(sorted, 0.99), bids: inSecond.filter(([, , , bids]) => bids > 0).length };
});
console.log(
  JSON.stringify({
    asked: number,
    sent,
    sent_rps: sent / options.seconds,
    p50_ms: at(latencies, 0.5),
    p99_ms: at(latencies, 0.99),
    most_ms: latencies.at(-1) ?? null,
    inside: responses.filter(([, ms, status]) => ms <= options.inside_ms && status < 300).length / sent,
    answered: withBids.length / sent,
    bids_rps: withBids.filter(([, ms]) => ms <= options.inside_ms).length / options.seconds,
    bids: responses.reduce((sum, [, , , bids]) => sum + bids, 0),
    errors: results.reduce((sum, result) => sum + result.errors, 0),
    timeouts: results.reduce((sum, result) => sum + result.timeouts, 0),
    status_5xx: results.reduce((sum, result) => sum + result["5xx"], 0),
    client_ms: (cpu.user + cpu.system) / 1000 / number,
    client_delay_ms: delay.percentile(99) / 1e6,
    seconds,
  }),
);
