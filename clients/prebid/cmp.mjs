// Minimal consent managers for Prebid.js, IAB TCF v2 and GPP, with a fixed answer of the reader.
// IAB Tech Lab's libraries encode the strings: TC strings of TCF 2.3, from a vendor list with the bidder as the only
// vendor, and GPP strings with the section of the United States.
import { GppModel } from "@iabgpp/cmpapi";
import { GVL, Segment, TCModel, TCString } from "@iabtcf/core";

const PURPOSES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const GRANTED = { all: PURPOSES, contextual: [2], refused: [] };

export function tcString(answer, vendorId) {
  const model = new TCModel(vendorList(vendorId));
  model.cmpId = 2;
  model.cmpVersion = 1;
  model.isServiceSpecific = true;
  model.purposeConsents.set(GRANTED[answer]);
  if (GRANTED[answer].length) model.vendorConsents.set(vendorId);
  model.vendorsDisclosed.set(vendorId);
  return TCString.encode(model, { segments: [Segment.CORE, Segment.VENDORS_DISCLOSED, Segment.PUBLISHER_TC] });
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

/** Installs `__gpp` with the section of the United States: notice was given, and the reader opted out or not. */
export function installGpp(isOptedOut) {
  const model = new GppModel();
  const fields = { SaleOptOutNotice: 1, TargetedAdvertisingOptOutNotice: 1, MspaCoveredTransaction: 2 };
  const optOut = isOptedOut ? 1 : 2;
  Object.assign(fields, { SaleOptOut: optOut, TargetedAdvertisingOptOut: optOut });
  for (const [field, value] of Object.entries(fields)) model.setFieldValue("usnat", field, value);
  const pingData = {
    gppVersion: "1.1",
    cmpStatus: "loaded",
    cmpDisplayStatus: "hidden",
    signalStatus: "ready",
    supportedAPIs: ["7:usnat"],
    cmpId: 2,
    applicableSections: [7],
    sectionList: [7],
    gppString: model.encode(),
    parsedSections: { usnat: [model.getSection("usnat").toObj?.() ?? model.getSection("usnat")] },
  };
  window.__gpp = (command, callback) => {
    if (command === "ping") callback(pingData, true);
    else if (command === "addEventListener") callback({ eventName: "listenerRegistered", listenerId: 1, data: true, pingData }, true);
    else callback(command === "removeEventListener" || null, command === "removeEventListener");
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
