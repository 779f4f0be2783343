// Writes golden/tcstrings.json: TC strings made by @iabtcf/core 1.5.6, and what its own decoder reads in them.
//
//   npm install --prefix /tmp/iabtcf @iabtcf/core@1.5.6
//   node tests/serve/protocol/make_tcstrings.mjs /tmp/iabtcf > tests/serve/protocol/golden/tcstrings.json
//
// Same version, same output: dates are fixed and chance has a seed. Each string is probed for a few vendors.
import path from "node:path";
import { pathToFileURL } from "node:url";

const core = path.join(path.resolve(process.argv[2]), "node_modules/@iabtcf/core/lib/mjs/index.js");
const { GVL, PurposeRestriction, TCModel, TCString } = await import(pathToFileURL(core));

let state = 20260101;
const random = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32); // LCG, Numerical Recipes
const below = (n) => Math.floor(random() * n);
const some = (ids, share) => ids.filter(() => random() < share);

const every = Array.from({ length: 11 }, (_, i) => i + 1);
const named = (ids) => Object.fromEntries(ids.map((id) => [id, { id, name: `${id}`, description: "", illustrations: [] }]));
function vendorList(most, gaps) {
  const vendors = {};
  for (let id = 1; id <= most; id++) {
    if (id !== most && random() < gaps) continue;
    vendors[id] = {
      id, name: `v${id}`, purposes: every, legIntPurposes: every.slice(1), flexiblePurposes: every.slice(1),
      specialPurposes: [], features: [], specialFeatures: [], policyUrl: "https://example.com",
    };
  }
  return new GVL({
    gvlSpecificationVersion: 3, vendorListVersion: 100, tcfPolicyVersion: 5, lastUpdated: "2026-01-01T00:00:00Z",
    purposes: named(every), specialPurposes: named([1, 2]), features: named([1, 2, 3]), specialFeatures: named([1, 2]),
    stacks: {}, vendors,
  });
}

function make(most, gaps, share, restrictions) {
  const gvl = vendorList(most, gaps);
  const ids = Object.keys(gvl.vendors).map(Number);
  const model = new TCModel(gvl);
  model.cmpId = 1 + below(400);
  model.cmpVersion = 1 + below(60);
  model.isServiceSpecific = true;
  model.publisherCountryCode = "DE";
  model.purposeConsents.set(some(every, 0.6));
  model.purposeLegitimateInterests.set(some(every.slice(1), 0.6));
  model.specialFeatureOptins.set(some([1, 2], 0.5));
  model.purposeOneTreatment = random() < 0.2;
  model.vendorConsents.set(some(ids, share));
  model.vendorLegitimateInterests.set(some(ids, share));
  for (let i = 0; i < restrictions; i++) {
    const restriction = new PurposeRestriction(2 + below(10), below(3));
    for (const id of some(ids, i % 2 ? 0.9 : 0.1)) model.publisherRestrictions.add(id, restriction);
  }
  model.created = model.lastUpdated = new Date(Date.UTC(2026, 0, 1));
  return TCString.encode(model);
}

function probe(text) {
  const model = TCString.decode(text);
  const consents = model.vendorConsents, interests = model.vendorLegitimateInterests;
  const ids = [1, 2, 3, consents.maxId, consents.maxId + 1, interests.maxId, 65535, ...Array.from({ length: 8 }, () => 1 + below(1200))];
  const vendors = [...new Set(ids)].filter((id) => id > 0).sort((a, b) => a - b).map((id) => ({
    id,
    consent: consents.has(id),
    interest: interests.has(id),
    restricted: [...new Set(model.publisherRestrictions.getRestrictions(id).map((r) => r.purposeId))].sort((a, b) => a - b),
  }));
  const list = (vector) => every.filter((id) => vector.has(id));
  return { text, consents: list(model.purposeConsents), interests: list(model.purposeLegitimateInterests), vendors };
}

const shapes = [];
for (const most of [1, 7, 46, 300, 1100]) {
  for (const [gaps, share] of [[0, 0], [0, 1], [0.1, 0.5], [0, 0.995], [0.6, 0.03]]) {
    for (const restrictions of [0, 3]) shapes.push([most, gaps, share, restrictions]);
  }
}
process.stdout.write(JSON.stringify(shapes.map((shape) => probe(make(...shape))), null, 0).replaceAll('{"text"', '\n{"text"') + "\n");
