// Charts from the numbers that came with the page, and again whenever a piece of it was renewed.
"use strict";
(() => {
  const CHARTS = {
    traffic: [["requests", "--one"], ["bids", "--three"]],
    latency: [["p50", "--one"], ["p99", "--two"]],
    fill: [["fill", "--three"]],
    sources: [["stored", "--one"], ["generated", "--two"], ["contextual", "--three"]],
  };
  const HEIGHT = 170;
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (_, value) => (value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: 1 }));

  const clock = (_, times, __, ___, step) => times.map((seconds) => (
    new Date(seconds * 1000).toISOString().slice(11, step < 60 ? 19 : 16)
  ));

  function options(chart, width) {
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const lines = CHARTS[chart].map(([label, name]) => (
      { label, stroke: colour(name), width: 2, points: { show: false }, value: shown }
    ));
    return {
      width,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { y: { range: (_, __, most) => [0, chart === "fill" ? 100 : Math.max(1, 1.1 * most)] } },
      padding: [8, 24, 0, 0],
      axes: [{ ...axis, values: clock, size: 28, space: 76 }, { ...axis, size: 44 }],
      series: [{ label: "UTC", value: (_, seconds) => (seconds == null ? "–" : clock(_, [seconds], 0, 0, 1)[0]) }, ...lines],
    };
  }

  function draw() {
    const series = JSON.parse(document.getElementById("series").dataset.series);
    for (const place of document.querySelectorAll("[data-chart]")) {
      const data = series[place.dataset.chart];
      if (plots.has(place)) plots.get(place).setData(data);
      else if (place.clientWidth) plots.set(place, new uPlot(options(place.dataset.chart, place.clientWidth), data, place));
    }
  }

  function again() {
    for (const plot of plots.values()) plot.destroy();
    plots.clear();
    draw();
  }

  const silent = (is) => { document.getElementById("silent").hidden = !is; };
  document.addEventListener("htmx:after:swap", draw);
  document.addEventListener("htmx:after:request", () => silent(false));
  document.addEventListener("htmx:error", () => silent(true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) again();
    width = innerWidth;
  });
  draw();
})();
