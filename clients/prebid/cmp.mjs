// A minimal consent manager for Prebid.js (IAB TCF v2) with a fixed answer of the reader.
// IAB Tech Lab's library encodes the TC strings, from a vendor list with the bidder as the only vendor.
import { GVL, TCModel, TCString } from "@iabtcf/core";

const PURPOSES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const GRANTED = { all: PURPOSES, contextual: [2], refused: [] };

export function tcString(answer, vendorId) {
  const model = new TCModel(vendorList(vendorId));
  model.cmpId = 2;
  model.cmpVersion = 1;
  model.isServiceSpecific = true;
  model.purposeConsents.set(GRANTED[answer]);
  if (GRANTED[answer].length) model.vendorConsents.set(vendorId);
  return TCString.encode(model);
}

/** Installs `__tcfapi` with the commands that Prebid.js calls: addEventListener, getTCData, removeEventListener. */
export function installCmp(answer, vendorId) {
  if (!(answer in GRANTED)) throw new RangeError(`consent=${answer}: use absent, ${Object.keys(GRANTED).join(", ")}`);
  const flags = (ids, granted) => Object.fromEntries(ids.map((id) => [id, granted.includes(id)]));
  const data = {
    tcfPolicyVersion: 5,
    gdprApplies: true,
    cmpStatus: "loaded",
    eventStatus: "tcloaded",
    listenerId: 1,
    tcString: tcString(answer, vendorId),
    purpose: { consents: flags(PURPOSES, GRANTED[answer]), legitimateInterests: {} },
    vendor: { consents: { [vendorId]: GRANTED[answer].length > 0 }, legitimateInterests: {} },
  };
  window.__tcfapi = (command, _version, callback) => {
    if (["addEventListener", "getTCData"].includes(command)) callback(data, true);
    else if (command === "removeEventListener") callback(true);
    else callback(null, false);
  };
}

function vendorList(vendorId) {
  const entry = (id) => ({ id, name: `${id}`, description: "", illustrations: [] });
  const vendor = {
    id: vendorId, name: "LEADRE", purposes: PURPOSES, legIntPurposes: [], flexiblePurposes: [],
    specialPurposes: [], features: [], specialFeatures: [], policyUrl: "https://bidder.example/privacy",
  };
  return new GVL({
    gvlSpecificationVersion: 3, vendorListVersion: 1, tcfPolicyVersion: 5, lastUpdated: "2026-01-01T00:00:00Z",
    purposes: Object.fromEntries(PURPOSES.map((id) => [id, entry(id)])),
    specialPurposes: {}, features: {}, specialFeatures: {}, stacks: {},
    vendors: { [vendorId]: vendor },
  });
}
