// Draws the charts from the numbers in the page, and again after each refresh.
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
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });
  const shown = (_, value) => (value == null ? "–" : (value < 1000 ? digits : short).format(value));
  const stepped = uPlot.paths.stepped({ align: -1 }); // a value belongs to the time before its sample

  const clock = (_, times, __, ___, step) => times.map((seconds) => (
    new Date(seconds * 1000).toISOString().slice(11, step < 60 ? 19 : 16)
  ));

  // uPlot draws no step from an empty value to the next one, so a copy of that one opens the step.
  function opened([times, ...lines]) {
    const data = [[], ...lines.map(() => [])];
    const push = (at, i) => {
      data[0].push(at);
      lines.forEach((values, line) => data[line + 1].push(values[i] ?? null));
    };
    times.forEach((at, i) => {
      push(at, i);
      if (lines.some((values) => values[i] == null && values[i + 1] != null)) push(at + 0.001, i + 1);
    });
    return data;
  }

  // A step between two gaps may be narrower than its line, so it gets a point.
  function single(plot, line) {
    const values = plot.data[line];
    const isSingle = (i) => values[i] != null && values[i + 1] == null && values[i - 2] == null;
    return Array.from(values.keys()).filter(isSingle);
  }

  // Without a cursor the legend shows the newest value.
  function setLegend(plot) {
    if (plot.cursor.idx == null) plot.setLegend({ idx: plot.data[0].length - 1 });
  }

  function options(chart, width) {
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const lines = CHARTS[chart].map(([label, name]) => {
      const stroke = colour(name);
      return { label, stroke, width: 2, paths: stepped, value: shown, points: { size: 5, fill: stroke, filter: single } };
    });
    return {
      width,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { y: { range: (_, __, most) => [0, chart === "fill" ? 102 : most > 0 ? 1.1 * most : 1] } },
      padding: [8, 24, 0, 0],
      axes: [
        { ...axis, values: clock, size: 28, space: 76 },
        { ...axis, values: (plot, values) => values.map((value) => shown(plot, value)), size: 48 },
      ],
      series: [{ label: "UTC", value: (_, seconds) => (seconds == null ? "–" : clock(_, [seconds], 0, 0, 1)[0]) }, ...lines],
      hooks: { setCursor: [setLegend] },
    };
  }

  function draw() {
    const series = JSON.parse(document.getElementById("series").dataset.series);
    for (const place of document.querySelectorAll("[data-chart]")) {
      const data = opened(series[place.dataset.chart]);
      if (plots.has(place)) plots.get(place).setData(data);
      else if (place.clientWidth) plots.set(place, new uPlot(options(place.dataset.chart, place.clientWidth), data, place));
      if (plots.has(place)) setLegend(plots.get(place));
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
