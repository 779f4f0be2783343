// Bid requests at a fixed rate, each of its own, and what came of them as one line of JSON.
//
//   node load.mjs < {"url", "rate", "seconds", "body", "users" or "user_ids", "inside_ms"}
//
// In `body` @NUMBER@ and @USER@ are filled in: users by Zipf's law of `users` (user-0 is the most frequent), or any of
// `user_ids`. autocannon sends a connection's share of the rate in one burst each second. So every connection has one
// request a second, and connections begin one after the other, a few hundred a second, in seconds that are not counted:
// arrivals are even, and do not wait for answers. Milliseconds are the client's, from the write to the answer's end.
import autocannon from "autocannon";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

const SLOTS = 100; // starts in a second
const OPENED = 300; // connections in a second
const GIVEN_UP_S = 5;

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const wanted = JSON.parse(Buffer.concat(chunks));
const parts = wanted.body.split(/(@NUMBER@|@USER@)/);
const rampS = Math.ceil(wanted.rate / OPENED);
const run = `${process.pid}-${Date.now().toString(36)}`;
const answers = []; // [sent ms, took ms, status, bids]
let number = 0;
let sent = 0;
let startMs = 0;

// The start is not counted, nor what connections send later that had to wait for answers.
const isCounted = (sentMs) => sentMs >= 1000 * rampS && sentMs < 1000 * (rampS + wanted.seconds);

const request = {
  setupRequest(request, context) {
    const user = wanted.user_ids
      ? wanted.user_ids[Math.floor(Math.random() * wanted.user_ids.length)]
      : `user-${Math.floor(wanted.users ** Math.random()) - 1}`;
    const values = { "@NUMBER@": `${run}-${number++}`, "@USER@": user };
    context.sentMs = performance.now() - startMs;
    if (isCounted(context.sentMs)) sent += 1;
    return { ...request, body: parts.map((part) => values[part] ?? part).join("") };
  },
  onResponse(status, body, context) {
    if (!isCounted(context.sentMs)) return;
    answers.push([context.sentMs, performance.now() - startMs - context.sentMs, status, body.split('"impid"').length - 1]);
  },
};

const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
startMs = performance.now();
const before = process.cpuUsage();
const runs = [];
const slots = SLOTS * rampS;
for (let slot = 0; slot < slots; slot++) {
  const connections = Math.floor(((slot + 1) * wanted.rate) / slots) - Math.floor((slot * wanted.rate) / slots);
  if (!connections) continue;
  await sleep((slot * 1000) / SLOTS - (performance.now() - startMs));
  runs.push(
    autocannon({
      url: wanted.url,
      method: "POST",
      headers: { "content-type": "application/json" },
      connections,
      overallRate: connections,
      amount: connections * (wanted.seconds + rampS - Math.floor(slot / SLOTS)),
      timeout: GIVEN_UP_S,
      requests: [request],
    }),
  );
}
const results = await Promise.all(runs);
const cpu = process.cpuUsage(before);

const took = answers.map(([, ms]) => ms).sort((a, b) => a - b);
const withBids = answers.filter(([, , status, bids]) => status === 200 && bids > 0);
const at = (values, share) => values[Math.min(values.length - 1, Math.floor(share * values.length))] ?? null;
const seconds = Array.from({ length: wanted.seconds }, (_, second) => {
  const mine = answers.filter(([sentMs]) => Math.floor(sentMs / 1000) === second + rampS);
  return { p99_ms: at(mine.map(([, ms]) => ms).sort((a, b) => a - b), 0.99), bids: mine.filter((a) => a[3] > 0).length };
});
console.log(
  JSON.stringify({
    asked: number,
    sent,
    sent_rps: sent / wanted.seconds,
    p50_ms: at(took, 0.5),
    p99_ms: at(took, 0.99),
    most_ms: took.at(-1) ?? null,
    inside: answers.filter(([, ms, status]) => ms <= wanted.inside_ms && status < 300).length / sent,
    answered: withBids.length / sent,
    bids_rps: withBids.filter(([, ms]) => ms <= wanted.inside_ms).length / wanted.seconds,
    bids: answers.reduce((sum, [, , , bids]) => sum + bids, 0),
    errors: results.reduce((sum, result) => sum + result.errors, 0),
    timeouts: results.reduce((sum, result) => sum + result.timeouts, 0),
    status_5xx: results.reduce((sum, result) => sum + result["5xx"], 0),
    client_ms: (cpu.user + cpu.system) / 1000 / number,
    client_delay_ms: delay.percentile(99) / 1e6,
    seconds,
  }),
);
