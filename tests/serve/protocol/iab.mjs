// IAB Tech Lab's own libraries: @iabtcf/core for TC strings, @iabgpp/cmpapi for GPP and US privacy strings.
//
//   node iab.mjs FOLDER tcf COUNT SEED    random TC strings, and what the library reads in each, as JSON lines
//   node iab.mjs FOLDER gpp COUNT SEED    the same for GPP strings
//   node iab.mjs FOLDER read              what the library reads in the strings of stdin, one a line: "C..." or "D..."
//
// FOLDER has the packages in node_modules. Same arguments, same output: dates are drawn too, and chance has a seed.
// golden/tcstrings.jsonl and golden/gppstrings.jsonl are the output for 60 and 150 strings with seed 1.
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, command, count, seed] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(path.join(path.resolve(folder), "node_modules", file)));
const { GVL, PurposeRestriction, Segment, TCModel, TCString } = await load("@iabtcf/core/lib/mjs/index.js");
const { GppModel } = await load("@iabgpp/cmpapi/lib/mjs/index.js");

let state = Number(seed) + 20260101;
const random = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32); // LCG, Numerical Recipes
const below = (n) => Math.floor(random() * n);
const pick = (items) => items[below(items.length)];
const some = (ids, share) => ids.filter(() => random() < share);
const sorted = (ids) => [...new Set(ids)].sort((a, b) => a - b);

const every = Array.from({ length: 11 }, (_, i) => i + 1);
const named = (ids) => Object.fromEntries(ids.map((id) => [id, { id, name: `${id}`, description: "", illustrations: [] }]));

function vendorList(most, gaps, policy) {
  const vendors = {};
  for (let id = 1; id <= most; id++) {
    if (id !== most && random() < gaps) continue;
    vendors[id] = {
      id, name: `v${id}`, purposes: every, legIntPurposes: every.slice(1), flexiblePurposes: every.slice(1),
      specialPurposes: [], features: [], specialFeatures: [], policyUrl: "https://example.com",
    };
  }
  return new GVL({
    gvlSpecificationVersion: 3, vendorListVersion: 100, tcfPolicyVersion: policy, lastUpdated: "2026-01-01T00:00:00Z",
    purposes: named(every), specialPurposes: named([1, 2]), features: named([1, 2, 3]), specialFeatures: named([1, 2]),
    stacks: {}, vendors,
  });
}

const lists = [[1, 0, 5], [7, 0, 2], [46, 0.1, 4], [120, 0.6, 5], [120, 0, 6], [800, 0.05, 5]].map((shape) => vendorList(...shape));

function tcString() {
  const gvl = pick(lists);
  const ids = Object.keys(gvl.vendors).map(Number);
  const model = new TCModel(gvl);
  model.cmpId = 2 + below(400);
  model.cmpVersion = 1 + below(60);
  model.isServiceSpecific = random() < 0.9;
  model.publisherCountryCode = "DE";
  model.purposeConsents.set(some(every, 0.6));
  model.purposeLegitimateInterests.set(some(every.slice(1), 0.6));
  model.specialFeatureOptins.set(some([1, 2], 0.5));
  model.purposeOneTreatment = random() < 0.2;
  const share = pick([0, 0.03, 0.5, 0.995, 1]);
  model.vendorConsents.set(some(ids, share));
  model.vendorLegitimateInterests.set(some(ids, share));
  for (let i = below(4); i > 0; i--) {
    const restriction = new PurposeRestriction(2 + below(10), below(3));
    for (const id of some(ids, pick([0.1, 0.9]))) model.publisherRestrictions.add(id, restriction);
  }
  model.vendorsDisclosed.set(some(ids, pick([0.5, 1])));
  model.vendorsAllowed.set(some(ids, 0.5));
  model.numCustomPurposes = below(4);
  model.publisherCustomConsents.set(some([1, 2, 3].slice(0, model.numCustomPurposes), 0.5));
  model.created = model.lastUpdated = new Date(Date.UTC(2023 + below(5), below(12), 1 + below(28)));
  const further = pick([[], [Segment.VENDORS_DISCLOSED], [Segment.VENDORS_DISCLOSED, Segment.VENDORS_ALLOWED]]);
  const segments = [Segment.CORE, ...further, ...(random() < 0.7 ? [Segment.PUBLISHER_TC] : [])];
  return TCString.encode(model, { segments });
}

/** The content of a TC string, probed for a few vendors. */
function readTc(text) {
  const model = TCString.decode(text);
  const [consents, interests, disclosed] = [model.vendorConsents, model.vendorLegitimateInterests, model.vendorsDisclosed];
  const probed = [consents.maxId, consents.maxId + 1, interests.maxId, disclosed.maxId, 1 + below(120), 1 + below(900)];
  const vendors = sorted(probed).filter((id) => id > 0).map((id) => ({
    id,
    consent: consents.has(id),
    interest: interests.has(id),
    disclosed: disclosed.has(id),
    restrictions: model.publisherRestrictions.getRestrictions(id).map((r) => [r.purposeId, r.restrictionType]).sort(),
  }));
  const purposes = Array.from({ length: 24 }, (_, i) => i + 1);
  return {
    text,
    created: model.created.getTime() / 1000,
    updated: model.lastUpdated.getTime() / 1000,
    policy: Number(model.policyVersion),
    specific: model.isServiceSpecific,
    consents: purposes.filter((id) => model.purposeConsents.has(id)),
    interests: purposes.filter((id) => model.purposeLegitimateInterests.has(id)),
    vendors,
  };
}

const US = Object.entries({
  usnat: 7, usca: 8, usva: 9, usco: 10, usut: 11, usct: 12, usfl: 13, usmt: 14, usor: 15, ustx: 16, usde: 17, usia: 18, usne: 19,
  usnh: 20, usnj: 21, ustn: 22, usmn: 23, usmd: 24, usin: 25, usky: 26, usri: 27,
});
const IGNORED = ["Version", "GpcSegmentType", "GpcSegmentIncluded", "SensitiveDataConsentSegmentIncluded", "MspaVersion"];

/** Sets the fields of a section to values that permit personal ads, with some of them drawn at random. */
function fillSection(model, name) {
  if (name === "usnat" && random() < 0.5) model.setFieldValue(name, "Version", 1);
  else model.setFieldValue(name, name === "usnat" ? "Version" : "MspaCoveredTransaction", name === "usnat" ? 2 : 1);
  const wild = pick([0, 0, 0.05, 0.3]);
  for (const [field, value] of Object.entries(model.getSection(name))) {
    if (IGNORED.includes(field)) continue;
    const tame = /Notice$/.test(field) || field === "MspaMode" ? [0, 1] : /Consents?$|OptOut$|Mode$/.test(field) ? [0, 2] : [0];
    const calm = /^SensitiveDataProcessing$|^KnownChild/.test(field) ? [0] : tame;
    const draw = () => (field === "MspaCoveredTransaction" ? 1 + below(2) : random() < wild ? below(3) : pick(calm));
    if (field === "Gpc") model.setFieldValue(name, field, random() < wild);
    else model.setFieldValue(name, field, Array.isArray(value) ? value.map(draw) : draw());
  }
  const has = (field) => field in model.getSection(name);
  for (const segment of ["GpcSegmentIncluded", "SensitiveDataConsentSegmentIncluded"]) {
    if (has(segment)) model.setFieldValue(name, segment, random() < 0.5);
  }
}

function gppString() {
  const model = new GppModel();
  for (const [name] of some(US, pick([0.05, 0.05, 0.2]))) fillSection(model, name);
  if (random() < 0.3) {
    for (const field of ["Notice", "OptOutSale", "LspaCovered"]) model.setFieldValue("uspv1", field, pick(["-", "Y", "N"]));
  }
  const text = model.encode();
  if (random() < 0.8) return text;
  const parts = new GppModel(text);
  const consent = tcString();
  try {
    parts.decodeSection("tcfeuv2", consent);
    return parts.encode();
  } catch {
    return text; // the library refuses to write strings that are not service-specific
  }
}

/** Number of a section -> its fields; of those with a text of their own, the text. */
function readGpp(text) {
  const model = new GppModel(text);
  const sections = {};
  if (model.hasSection("tcfeuv2")) sections[2] = model.getSectionString?.("tcfeuv2") ?? model.encodeSection("tcfeuv2");
  if (model.hasSection("uspv1")) sections[6] = model.encodeSection("uspv1");
  for (const [name, number] of US) {
    if (model.hasSection(name)) sections[number] = model.getSection(name).toObj?.() ?? model.getSection(name);
  }
  return { text, sections };
}

const read = (text) => (text.startsWith("D") ? readGpp(text) : readTc(text));
if (command === "read") {
  const texts = (await new Response(process.stdin).text()).split("\n").filter(Boolean);
  process.stdout.write(texts.map((text) => JSON.stringify(read(text)) + "\n").join(""));
} else {
  const make = { tcf: tcString, gpp: gppString }[command];
  for (let i = 0; i < Number(count); i++) process.stdout.write(JSON.stringify(read(make())) + "\n");
}
