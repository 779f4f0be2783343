// A publisher's code to sell two ad slots to LEADRE. Prebid.js calls the bidder as it calls a Prebid Server: the page
// needs no adapter of ours, only the bidder's address. The query string sets the scenario:
//
//   bidder    base URL of `leadre serve`
//   consent   the reader's answer: absent, all, contextual, refused by TCF; us, us-opted-out by GPP (see cmp.mjs)
//   vendor    the bidder's ID on the Global Vendor List
//   user      the publisher's own ID of the reader
//   floor     the floor of both slots, CPM in USD
//   timeout   milliseconds until the page continues without a bid
import pbjs from "prebid.js";
import "prebid.js/modules/consentManagementGpp";
import "prebid.js/modules/consentManagementTcf";
import "prebid.js/modules/prebidServerBidAdapter";
import "prebid.js/modules/sizeMappingV2";
import { installCmp, installGpp } from "./cmp.mjs";

const query = new URLSearchParams(location.search);
const consent = query.get("consent") ?? "absent";
const floor = Number(query.get("floor") ?? 0.1);
const timeout = Number(query.get("timeout") ?? 1500);

// Prebid requests the sizes of the last entry whose `minViewPort` fits into the window: a leaderboard is wider than a phone.
const slot = (code, ...sizeConfig) => ({
  code,
  mediaTypes: { banner: { sizeConfig } },
  ortb2Imp: { tagid: code, bidfloor: floor, bidfloorcur: "USD" },
  bids: [{ bidder: "leadre", params: {} }],
});
const adUnits = [
  slot("home-top", { minViewPort: [0, 0], sizes: [[320, 100], [320, 50]] }, { minViewPort: [776, 0], sizes: [[728, 90]] }),
  slot("home-side", { minViewPort: [0, 0], sizes: [[300, 250]] }),
];

// The source of an ad, which the bidder names in `bid.ext.prebid.meta`, as its reader understands it.
const SOURCES = {
  stored: {
    reason: "It is on a list made for you",
    source: "a list made ahead of time",
    data: "your ID at this site and your past events",
  },
  generated: {
    reason: "It was chosen for you just now",
    source: "written online by the language model",
    data: "your ID at this site and your latest events",
  },
  contextual: { reason: "It is popular with all readers", source: "the list of popular ads", data: "nothing about you" },
};
const UNKNOWN = { reason: "The bidder gives no reason", source: "not named", data: "not known to this page" };

pbjs.processQueue();
pbjs.setConfig({
  bidderTimeout: timeout,
  s2sConfig: {
    enabled: true,
    accountId: "garden-weekly",
    bidders: ["leadre"],
    endpoint: `${query.get("bidder") ?? "http://127.0.0.1:8080"}/openrtb2/auction`,
    timeout: 1000, // the bidder's `tmax`
  },
  ortb2: {
    site: { cat: ["IAB10"], content: { language: "en" } },
    ...(query.has("user") && { user: { id: query.get("user") } }),
  },
});

if (consent.startsWith("us")) {
  installGpp(consent === "us-opted-out");
  pbjs.setConfig({ consentManagement: { gpp: { cmpApi: "iab", timeout } } });
} else if (consent !== "absent") {
  installCmp(consent, Number(query.get("vendor") ?? 1));
  pbjs.setConfig({ consentManagement: { gdpr: { cmpApi: "iab", timeout } } });
}

// Read by drive.mjs. Prebid reports its errors only to listeners of this event.
window.auction = { bids: [], errors: [], isOver: false };
pbjs.onEvent("auctionDebug", ({ type, arguments: words }) => {
  if (type === "ERROR") window.auction.errors.push(Array.from(words, String).join(" "));
});

pbjs.requestBids({
  adUnits,
  bidsBackHandler() {
    for (const { code } of adUnits) {
      const bid = pbjs.getHighestCpmBids(code)[0];
      if (bid) render(code, bid);
    }
    window.auction.isOver = true;
  },
});

// Prebid calls the burl as it renders the bid, and the nurl by a pixel that it puts in front of the banner.
function render(code, bid) {
  const slot = document.getElementById(code);
  const bare = { width: 0, height: 0, marginWidth: 0, marginHeight: 0, scrolling: "no" }; // Prebid sets the size
  const frame = Object.assign(document.createElement("iframe"), { title: "Advertisement", ...bare });
  slot.append(frame);
  slot.hidden = false;
  pbjs.renderAd(frame.contentDocument, bid.adId);
  slot.append(explanation(bid.meta));
  const { seatBidId, bidderCode, cpm, currency, width, height, creativeId, meta } = bid;
  window.auction.bids.push({ code, seatBidId, bidderCode, cpm, currency, width, height, creativeId, ...meta });
}

// A line below the ad with the reason why it is shown; it opens to source, advertiser and data. All of it is from the bid.
function explanation({ advertiserDomains = [], leadre }) {
  const { reason, source, data } = SOURCES[leadre?.source] ?? UNKNOWN;
  const element = (tag, text, ...children) => {
    const created = Object.assign(document.createElement(tag), { textContent: text });
    created.append(...children);
    return created;
  };
  const rows = { Source: source, Advertiser: advertiserDomains.join(", ") || "not named", "Data used": data };
  const facts = Object.entries(rows).flatMap(([name, text]) => [element("dt", name), element("dd", text)]);
  return element("details", "", element("summary", `Why this ad? ${reason}.`), element("dl", "", ...facts));
}
