// The live page. It shows a document (see Collector.document): the one that is saved in the page, or else the one that
// the stream `events` sends, which ticks then keep up to date. No build step, nothing from elsewhere but uPlot.
"use strict";

const $ = (id) => document.getElementById(id);
const saved = $("saved").textContent;
const isLive = saved === "";

let shown = null; // the document
let selected = null; // the name of the curriculum that is shown
let stream = null;
let order = { sort: "weight", descending: true };

// ---- words

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return Math.abs(value) < 1e6 ? whole.format(value) : compact.format(value);
  return Math.abs(value) >= 1000 ? whole.format(Math.round(value)) : short.format(value);
}

/** How many of something there are, in words that agree; what takes more than an s is given as two. */
function counted(value, one, several = `${one}s`) {
  const text = number(value);
  return `${text} ${text === "1" ? one : several}`;
}

function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  if (share > 0 && share < 1e-5) return "<0.001 %";
  return `${short.format(100 * share)} %`;
}

function size(bytes) {
  return bytes < 1e6 ? `${number(bytes / 1e3)} kB` : `${number(bytes / 1e6)} MB`;
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const two = (n) => String(n).padStart(2, "0");

function clock(seconds, step = 60) {
  const time = new Date(seconds * 1000);
  if (step >= 86400) return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return `${two(time.getHours())}:${two(time.getMinutes())}${step < 60 ? `:${two(time.getSeconds())}` : ""}`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

// ---- colours, from the style sheet, so that light and dark are decided in one place

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** 256 colours from --cold over --warm to --hot. */
function makeRamp() {
  const [cold, warm, hot] = ["--cold", "--warm", "--hot"].map((name) =>
    [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const [from, to, part] = i < 128 ? [cold, warm, i / 128] : [warm, hot, (i - 128) / 127];
    return `rgb(${from.map((c, k) => Math.round(c + part * (to[k] - c))).join(" ")})`;
  });
}

let ramp = makeRamp();

// ---- charts

const natural = new Intl.Collator("en", { numeric: true });

/** Returns the groups as people count them: label, place among those of the history, and colour, from first to last. */
function groupsOf({ groups }) {
  const order = groups.map((label, at) => ({ label, at })).sort((a, b) => natural.compare(a.label, b.label));
  return order.map((group, i) => ({ ...group, colour: `hsl(${250 - (230 * i) / Math.max(order.length - 1, 1)} 62% 58%)` }));
}

/** Returns the share of the replays of each group, of those whose groups are known; null where none is. */
function groupMass(packed, num) {
  const shares = [...bytes(packed)].map((byte) => (byte / 255) ** 3);
  const total = shares.reduce((sum, share) => sum + share, 0);
  return total ? Array.from({ length: num }, (_, at) => (shares[at] ?? 0) / total) : null;
}

/** Returns (what happened between two samples) for a counter; null where the server began anew. */
function steps(values) {
  return values.map((value, i) => (i && value >= values[i - 1] ? value - values[i - 1] : null));
}

function rates(columns, name) {
  const seconds = steps(columns.t);
  return steps(columns[name]).map((change, i) => (change === null || !seconds[i] ? null : change / seconds[i]));
}

const bytes = (packed) => (packed ? Uint8Array.from(atob(packed), (character) => character.charCodeAt(0)) : []);

const line = (label, stroke, more = {}) => ({
  label, stroke: () => colour(stroke), width: 1.75, points: { show: false }, value: (_, v) => number(v), ...more,
});
const asPercent = { value: (_, v) => percent(v) };

const CHARTS = [
  {
    id: "spread",
    title: "How many levels does it play?",
    answer: (now) => `As spread out as ${counted(now.summary.effective_levels, "equally likely level")}; ` +
      `${percent(now.counters.levels_seen / now.counters.levels)} of the levels are seen.`,
    series: [line("effective levels", "--accent"), line("seen share", "--second", { scale: "share", ...asPercent })],
    share: "right",
    data: (h, now) => [h.effective_levels, h.levels_seen.map((seen) => seen / now.counters.levels)],
  },
  {
    id: "gain",
    free: true,
    title: "Does it choose better than chance?",
    answer: (now) => `What is replayed scores ${number(now.summary.drawn_score)} on average, ` +
      `a uniform draw ${number(now.summary.table_score)}.`,
    series: [
      line("replayed", "--accent", { width: 2.25 }),
      line("uniform draw", "--second", { dash: [5, 4] }),
      line("90 % of levels below", "--muted", { width: 0.75 }),
      line("10 % below", "--muted", { width: 0.75 }),
    ],
    bands: [{ series: [3, 4], fill: () => colour("--band") }],
    data: (h) => [h.drawn_score, h.table_score, h.score_q90, h.score_q10],
  },
  {
    id: "scores",
    title: "Which scores are there?",
    answer: (now) => `From ${number(now.summary.score_min)} to ${number(now.summary.score_max)}, ` +
      `half of them below ${number(now.summary.score_q50)}.`,
    scale: "levels with this score",
    heat: (h) => ({
      low: Math.min(...h.score_min.filter((x) => x !== null)),
      high: Math.max(...h.score_max.filter((x) => x !== null)),
      columns: h.score_shares.map((packed, i) => ({ cells: bytes(packed), from: h.score_min[i], to: h.score_max[i] })),
    }),
  },
  {
    id: "mass",
    title: "Which levels does it play?",
    answer: (now) => `${number(now.summary.most_mass_levels)} of ${counted(now.counters.levels_seen, "seen level")} ` +
      `${now.summary.most_mass_levels === 1 ? "takes" : "take"} 90 % of the replays.`,
    scale: "replays of these levels; bottom to top: along the level space",
    scaleByGroup: "replays of this group",
    heat: (h, now) => ({
      low: 0,
      high: now.counters.levels,
      columns: h.mass_shares.map((packed) => ({ cells: bytes(packed), from: 0, to: now.counters.levels })),
    }),
    byGroup: (h, now) => {
      const order = groupsOf(now);
      return {
        low: 0,
        high: order.length,
        labels: order.map(({ label }) => label),
        columns: (h.group_mass ?? []).map((packed) => {
          const cells = bytes(packed);
          return { cells: cells.length ? order.map(({ at }) => cells[at] ?? 0) : [], from: 0, to: order.length };
        }),
      };
    },
  },
  {
    id: "group-mass",
    title: "Which groups does it play?",
    when: (now) => now.groups?.length > 0,
    answer: (now) => {
      const mass = groupMass(now.summary.group_mass, now.groups.length);
      const most = groupsOf(now).reduce((a, b) => (mass[b.at] > mass[a.at] ? b : a));
      return `Most often ${most.label}: ${percent(mass[most.at])} of the replays, ` +
        `with ${number(now.summary.group_levels?.[most.at])} of the seen levels.`;
    },
    share: "left",
    seriesOf: (now) => groupsOf(now).map(({ label, colour: of }, i, all) => line(label, of, {
      scale: "share", width: 0.5, stroke: of, ...(i ? {} : { fill: of }),
      value: (plot, v, s, at) => (v == null ? "–" : percent(v - (s > 1 ? plot.data[s - 1][at ?? plot.data[0].length - 1] : 0))),
    })),
    bandsOf: (series) => series.slice(1).map(({ stroke }, i) => ({ series: [i + 2, i + 1], fill: stroke })),
    data: (h, now) => {
      const samples = h.t.map((_, i) => groupMass(h.group_mass?.[i], now.groups.length));
      const sums = h.t.map(() => 0);
      return groupsOf(now).map(({ at }) => samples.map((mass, i) => (mass ? (sums[i] += mass[at]) : null)));
    },
  },
  {
    id: "group-return",
    title: "What does it earn there?",
    when: (now) => now.summary.group_returns?.some((value) => value !== null),
    answer: (now) => {
      const told = groupsOf(now).filter(({ at }) => now.summary.group_returns[at] !== null);
      return `The last episode of a level returned, on average, ${told.slice(0, 3).map(({ label, at }) =>
        `${number(now.summary.group_returns[at])} in ${label}`).join(", ")}${told.length > 3 ? " …" : "."}`;
    },
    seriesOf: (now) => groupsOf(now).map(({ label, colour: of }) => line(label, of, { stroke: of })),
    free: true,
    data: (h, now) => groupsOf(now).map(({ at }) => h.t.map((_, i) => h.group_returns?.[i]?.[at] ?? null)),
  },
  {
    id: "replays",
    title: "How much is replayed?",
    answer: (now) => `${percent(now.counters.replays / now.counters.draws)} of ${counted(now.counters.draws, "draw")} ` +
      "replayed a level.",
    small: true,
    series: [line("replay share", "--accent", { scale: "share", ...asPercent })],
    share: "left",
    data: (h) => {
      const draws = steps(h.draws);
      return [steps(h.replays).map((replays, i) => (draws[i] ? replays / draws[i] : null))];
    },
  },
  {
    id: "staleness",
    title: "How old are the scores?",
    answer: (now) => `Half of the seen levels were drawn in the last ${counted(now.summary.staleness_q50, "draw")}.`,
    small: true,
    series: [
      line("oldest", "--muted", { width: 1 }), line("90 %", "--second"), line("half", "--accent"),
    ],
    data: (h) => [h.staleness_max, h.staleness_q90, h.staleness_q50],
  },
  {
    id: "throughput",
    title: "Is it busy?",
    answer: (now) => `${counted(now.rates.draws, "draw")} and ${counted(now.rates.pushes, "push", "pushes")} a second.`,
    small: true,
    series: [line("draws/s", "--accent"), line("pushes/s", "--second", { scale: "second" })],
    data: (h) => [rates(h, "draws"), rates(h, "pushes")],
  },
];

/** A figure with a uPlot in it; `update` gives it a curriculum. */
class Chart {
  constructor(spec, parent = $("charts")) {
    this.spec = spec;
    this.caption = make("p", { id: `answer-${spec.id}` });
    this.place = make("div", { class: "plot", role: "img", "aria-labelledby": `answer-${spec.id}` });
    this.figure = make("figure", { id: `chart-${spec.id}`, ...(spec.small ? { class: "small" } : {}) },
      make("figcaption", {}, make("h2", {}, spec.title), this.caption), this.place);
    if (spec.scale) {
      this.scale = make("span", {}, `all ${spec.scale}`);
      this.figure.append(make("p", { class: "scale" }, "none", make("i"), this.scale));
    }
    this.figure.hidden = Boolean(spec.when);
    if (spec.byGroup) this.addToggle();
    parent.append(this.figure);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.place);
  }

  size() {
    return { width: Math.max(this.place.clientWidth, 200), height: this.spec.small ? 170 : 220 };
  }

  /** A button that has the heat map show groups in place of levels. */
  addToggle() {
    this.toggle = make("button", { type: "button", class: "button", "aria-pressed": "false", hidden: "" }, "by group");
    this.toggle.addEventListener("click", () => {
      this.isByGroup = !this.isByGroup;
      this.toggle.setAttribute("aria-pressed", this.isByGroup);
      this.update(shown.curricula[selected]);
    });
    this.figure.querySelector(".scale").append(this.toggle);
  }

  update(now) {
    const columns = now.history?.columns;
    if (!columns?.t?.length || !now.counters) return;
    this.figure.hidden = this.spec.when ? !this.spec.when(now) : false;
    if (this.figure.hidden) return;
    if (this.toggle) this.toggle.hidden = !now.groups?.length;
    this.caption.textContent = this.spec.answer(now);
    const isByGroup = this.isByGroup && now.groups?.length > 0;
    this.heat = isByGroup ? this.spec.byGroup(columns, now) : this.spec.heat?.(columns, now);
    if (this.toggle) this.scale.textContent = `all ${isByGroup ? this.spec.scaleByGroup : this.spec.scale}`;
    this.series = this.spec.seriesOf?.(now) ?? this.spec.series;
    const parts = JSON.stringify([this.heat?.labels, this.series?.map(({ label }) => label)]);
    if (parts !== this.parts) { // a group was met: other lines, or other rows
      this.plot?.destroy();
      this.plot = null;
      this.parts = parts;
    }
    const data = [columns.t, ...(this.heat ? [columns.t.map(() => null)] : this.spec.data(columns, now))];
    if (this.plot) this.plot.setData(data);
    else this.plot = new uPlot(this.options(), data, this.place);
    this.showLast();
  }

  /** Has the legend say the newest values while the mouse is elsewhere. */
  showLast() {
    if (!this.heat && this.plot.cursor.idx == null) this.plot.setLegend({ idx: this.plot.data[0].length - 1 }, false);
  }

  options() {
    const { spec } = this;
    const axis = { stroke: () => colour("--muted"), font: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
    const values = { ...axis, size: 54, values: (_, splits) => splits.map(number) };
    const shares = { ...axis, scale: "share", size: 50, values: (_, splits) => splits.map(percent) };
    const axes = [{ ...axis, size: 30, space: 70, values: (_, splits, _axis, _space, step) => splits.map((t) => clock(t, step)) }];
    const { labels } = this.heat ?? {};
    if (labels) {
      const size = Math.min(120, 16 + 7 * Math.max(...labels.map((label) => label.length)));
      axes.push({ ...values, size, splits: () => labels.map((_, i) => i + 0.5), values: () => labels });
    } else if (spec.share !== "left") axes.push(values);
    if (spec.share) axes.push(spec.share === "left" ? shares : { ...shares, side: 1, grid: { show: false } });
    if (spec.id === "throughput") axes.push({ ...values, scale: "second", side: 1, grid: { show: false } });
    const wide = (low, high) => (low < high ? [low, high] : [low - 0.5, high + 0.5]);
    return {
      ...this.size(),
      padding: [12, spec.share === "right" || spec.id === "throughput" ? 0 : 14, 0, 0],
      cursor: { sync: { key: "curriculum" }, points: { size: 6 }, drag: { setScale: false, x: false, y: false } },
      legend: { show: !spec.heat, markers: { width: 0, fill: (u, i) => u.series[i].stroke() } },
      scales: {
        x: { range: (_, low, high) => wide(low, high) },
        y: spec.heat ? { range: () => wide(this.heat.low, this.heat.high) }
          : spec.free ? {} : { range: (_, low, high) => [0, Math.max(high * 1.05, 1e-9)] },
        share: { range: spec.near ? (_, low, high) => [0, Math.max(high * 1.05, 1e-9)] : [0, 1.02] },
        second: { range: (_, low, high) => [0, Math.max(high * 1.05, 1e-9)] },
      },
      series: [{ label: "at", value: (_, t) => (t == null ? "–" : clock(t, 1)) }, ...(this.series ?? [{ show: true }])],
      bands: spec.bandsOf?.(this.series) ?? spec.bands,
      axes,
      hooks: {
        drawClear: [(plot) => this.heat && this.drawHeat(plot)],
        setCursor: [() => this.plot && this.showLast()],
      },
    };
  }

  /** Draws a column of cells for every sample: what held from the sample before until then. */
  drawHeat(plot) {
    const { ctx, bbox } = plot;
    const times = plot.data[0];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    this.heat.columns.forEach(({ cells, from, to }, i) => {
      if (!cells.length) return;
      const right = times.length > 1 ? plot.valToPos(times[i], "x", true) : bbox.left + bbox.width;
      const left = i ? plot.valToPos(times[i - 1], "x", true) : bbox.left;
      const [bottom, top] = [from, to].map((value) => plot.valToPos(value, "y", true));
      const height = Math.max((bottom - top) / cells.length, 1);
      cells.forEach((cell, k) => {
        if (!cell) return;
        ctx.fillStyle = ramp[cell];
        ctx.fillRect(Math.floor(left), bottom - (k + 1) * height, Math.ceil(right - left) + 1, height + 0.5);
      });
    });
    ctx.restore();
  }
}

const charts = CHARTS.map((spec) => new Chart(spec));

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  ramp = makeRamp();
  charts.forEach((chart) => chart.plot?.redraw());
});

// ---- the parts above and below the charts

function showHeader() {
  const { config } = shown.curricula[selected] ?? {};
  const several = Object.keys(shown.curricula).length > 1;
  $("name").textContent = several ? `Curriculum ${selected}` : "Curriculum";
  document.title = several ? `${selected} – curriculum` : "Curriculum";
  $("what").textContent = shown.address + (config
    ? ` · levels ${config.levels.replace(/:1$/, "")} · ${config.strategy} · ${config.transform}, temperature ${config.temperature}, ` +
      `staleness coefficient ${config.staleness_coef}`
    : "");
  if (!isLive) connection("saved", `as of ${clock(shown.t, 86400)} ${clock(shown.t)}`);
  else if (shown.lost_s === null) connection("live", "live");
  else connection("lost", `no answer since ${lostSince()}`);
}

/** When the server answered last: a time, which stays, and not a duration, which is read out every second. */
function lostSince() {
  return clock(shown.t - shown.lost_s, 1);
}

function connection(state, text) {
  $("connection").dataset.state = state;
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

function showCurricula() {
  const names = Object.keys(shown.curricula);
  const nav = $("curricula");
  nav.hidden = names.length < 2;
  if (nav.hidden) return;
  if (nav.children.length !== names.length || names.some((name, i) => nav.children[i].dataset.name !== name)) {
    nav.replaceChildren(...names.map((name) => {
      const button = make("button", { type: "button", "data-name": name });
      button.addEventListener("click", () => select(name));
      return button;
    }));
  }
  for (const button of nav.children) {
    const { name } = button.dataset;
    const { counters, summary, verdict } = shown.curricula[name];
    button.setAttribute("aria-current", name === selected);
    button.dataset.kind = verdict?.[0].kind ?? "note";
    const effective = counters ? counted(summary.effective_levels, "effective level") : "";
    button.replaceChildren(make("strong", {}, name, make("span", {}, effective)),
      make("span", {}, verdict?.[0].text ?? "not read yet"));
  }
}

const KINDS = { trouble: "Trouble", watch: "Watch", note: "Note", fine: "Fine" };

function showVerdict() {
  const lost = isLive && shown.lost_s !== null;
  let findings = shown.curricula[selected]?.verdict ?? [];
  if (lost) {
    const long = `The server has not answered since ${lostSince()}. What follows is what it said last; ` +
      "the page goes on by itself when it is back.";
    const never = `No answer from ${shown.address}: is plr-server serve running there? The page goes on by itself.`;
    findings = [{ kind: "trouble", text: findings.length ? long : never }];
  }
  if (!findings.length) findings = [{ kind: "note", text: "Reading the first numbers …" }];
  const [first, ...rest] = findings;
  const said = JSON.stringify(findings);
  if ($("verdict").dataset.said === said) return; // a screen reader hears what is new, and no more
  $("verdict").dataset.said = said;
  $("verdict").dataset.kind = first.kind;
  const list = rest.map(({ kind, text }) =>
    make("li", { "data-kind": kind }, make("b", {}, KINDS[kind]), make("span", {}, text)));
  $("verdict").replaceChildren(make("p", { class: "first" }, first.text), ...(list.length ? [make("ul", {}, ...list)] : []));
}

function tiles({ counters: c, rates: r, summary: s }) {
  return [
    ["effective_levels", "Effective levels", number(s.effective_levels), `of ${number(c.levels_seen)} seen`],
    ["levels_seen", "Levels seen", percent(c.levels_seen / c.levels), `${number(c.levels_seen)} of ${number(c.levels)}`],
    ["drawn_score", "Replayed score", number(s.drawn_score), `uniform ${number(s.table_score)}`],
    ["replay_share", "Replay share", percent(c.draws ? c.replays / c.draws : null), `of ${counted(c.draws, "draw")}`],
    ["staleness", "Staleness", number(s.staleness_q50), `90 % below ${number(s.staleness_q90)}`],
    ["score_age", "Score age", number(s.score_age), "draws, at a replay"],
    ...(s.mean_return == null ? [] : [["mean_return", "Last return", number(s.mean_return), "mean of the levels"]]),
    ["draws_per_s", "Draws/s", number(r.draws), `${counted(r.episodes, "episode")}/s`],
    ["pushes_per_s", "Pushes/s", number(r.pushes), `${counted(r.steps, "step")}/s`],
    ["sessions", "Clients", number(c.sessions), `${counted(c.in_flight, "level")} in flight`],
    ["most_in_flight", "On one level", number(c.most_in_flight), `at most; ${counted(c.levels_in_flight, "is", "are")} played`],
    ...(c.prefetched || c.prefetch_lag_pushes
      ? [["prefetched", "Asked ahead", number(c.prefetched), `${counted(c.prefetch_lag_pushes, "push", "pushes")} old`]] : []),
    ...(c.entered ? [["entered", "Entered the table", number(c.entered),
      `${number(c.evicted)} left, ${number(c.rejected)} turned away`]] : []),
    ...(c.commands === undefined ? [] : [
      ["durable", "Not yet durable", number(c.commands - c.durable_commands), `of ${counted(c.commands, "command")}`],
      ["journal", "Journal", size(c.journal_bytes), `snapshot ${duration(c.snapshot_age_s)} ago`],
    ]),
  ];
}

function showTiles() {
  const now = shown.curricula[selected];
  if (!now?.counters) return;
  $("tiles").replaceChildren(...tiles(now).map(([name, label, value, more]) =>
    make("div", { "data-tile": name }, make("dt", {}, label), make("dd", {}, value), make("dd", {}, more))));
}

// ---- the level table

const COLUMNS = [
  ["id", "Level", name],
  [null, "Rank", (row) => number(row.rank)],
  ["score", "Score", (row) => number(row.score)],
  ["weight", "P_replay", chance],
  [null, "by score", (row) => percent(row.by_score)],
  [null, "by staleness", (row) => percent(row.by_staleness)],
  ["staleness", "Staleness", (row) => number(row.staleness)],
  ["plays", "Plays", (row) => number(row.plays)],
  ["last_return", "Last return", (row) => number(row.last_return)],
];

const pictures = new Map(); // of levels that were shown, the longest ago first

/** Returns the picture of a level, as an element that is made once; it goes where there is none. */
function picture(level, saved) {
  const key = `${selected}/${level}`;
  let image = pictures.get(key);
  if (!image || image.isConnected) { // an element has one place
    const asked = new URLSearchParams({ curriculum: selected, level });
    image = make("img", { src: saved ? `data:image/png;base64,${saved}` : `picture?${asked}`, alt: "", height: 44 });
    image.addEventListener("error", () => image.remove());
  }
  pictures.delete(key);
  pictures.set(key, image);
  if (pictures.size > 256) pictures.delete(pictures.keys().next().value);
  return image;
}

/** A level's id, with its picture, as a button that shows more of it. */
function name(row) {
  const button = make("button", { type: "button", "aria-expanded": "false" }, row.id);
  if (isLive ? shown.curricula[selected].has_pictures : row.picture) button.prepend(picture(row.id, row.picture));
  button.addEventListener("click", () => showLevel(row.id));
  return button;
}

/** The chance of a level in one replay, as a bar cut in its two parts; the most likely level fills it. */
function chance(row, most) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 8");
  svg.setAttribute("preserveAspectRatio", "none");
  let from = 0;
  for (const part of ["by_score", "by_staleness"]) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const width = (100 * row[part]) / most;
    for (const [name, value] of Object.entries({ x: from, width, height: 8, class: part.replace("_", "-") })) {
      rect.setAttribute(name, value);
    }
    svg.append(rect);
    from += width;
  }
  return make("span", {}, make("span", { class: "bar", "aria-hidden": "true" }, svg), make("b", {}, percent(row.weight)));
}

for (const [key, label] of COLUMNS) {
  const cell = make("th", { scope: "col" });
  if (key === null) cell.append(label);
  else {
    const button = make("button", { type: "button", "data-sort": key }, label);
    button.addEventListener("click", () => {
      order = { sort: key, descending: order.sort === key ? !order.descending : key !== "id" };
      showLevels();
    });
    cell.append(button);
  }
  $("columns").append(cell);
}

$("find").addEventListener("input", () => showLevels());

async function levels() {
  const find = $("find").value.trim();
  if (isLive) {
    const asked = { curriculum: selected, sort: order.sort, descending: Number(order.descending), find };
    const reply = await fetch(`levels?${new URLSearchParams(asked)}`);
    return reply.ok ? reply.json() : { total: 0, rows: [] };
  }
  const { total = 0, rows = [] } = shown.curricula[selected]?.levels ?? {};
  const sign = order.descending ? -1 : 1;
  const found = rows.filter((row) => find === "" || String(row.id) === find);
  const value = (row) => row[order.sort] ?? -sign * Infinity; // what is not known comes last
  return { total, rows: found.sort((a, b) => sign * (value(a) - value(b)) || 0) };
}

async function showLevels() {
  const asked = JSON.stringify([selected, order, $("find").value]);
  let found;
  try {
    found = await levels();
  } catch {
    return; // the viewer is gone; what is there stays
  }
  if (asked !== JSON.stringify([selected, order, $("find").value])) return; // a later question is on its way
  [...$("columns").children].forEach((cell, i) => {
    if (COLUMNS[i][0] === order.sort) cell.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  const focused = document.activeElement?.closest("#rows tr")?.dataset.level;
  const most = Math.max(...found.rows.map((row) => row.weight), Number.MIN_VALUE);
  $("rows").replaceChildren(...found.rows.map((row) =>
    make("tr", { "data-level": row.id }, ...COLUMNS.map(([key, , cell]) =>
      make("td", key === "weight" ? { class: "chance" } : {}, cell(row, most))))));
  if (focused !== undefined) document.querySelector(`#rows tr[data-level="${focused}"] button`)?.focus();
  const note = found.rows.length < found.total
    ? `${number(found.rows.length)} of ${counted(found.total, "seen level")}. ` : `${counted(found.total, "seen level")}. `;
  $("levels-note").replaceChildren(note, "The chance of being replayed next:",
    make("span", { class: "key by-score" }), "by score", make("span", { class: "key by-staleness" }), "by staleness");
}

// ---- one level

let opened = null; // the id of the level that is shown in full
let past = null; // the chart of its past

const PAST = {
  id: "past",
  title: "Its past",
  answer: () => "Its score, and its chance of being replayed next.",
  share: "right",
  near: true, // a share of its own size
  free: true,
  series: [line("score", "--accent"), line("P_replay", "--second", { scale: "share", ...asPercent })],
  data: (h) => [h.score, h.weight],
};

async function showLevel(level) {
  opened = level;
  const of = await levelOf(level);
  if (opened !== level || !of) return;
  const panel = $("level");
  const isNew = panel.dataset.level !== String(level);
  const facts = [];
  if (of.row) {
    facts.push(`rank ${number(of.row.rank)}`, `score ${number(of.row.score)}`, `P_replay ${percent(of.row.weight)}`,
      `played ${counted(of.row.plays, "time")}`, `last return ${number(of.row.last_return)}`);
    if (of.row.since_played !== null) facts.push(`its score is ${counted(of.row.since_played, "draw")} old`);
  } else facts.push("not in the table, or not seen yet");
  if (of.group) facts.unshift(of.group);
  panel.hidden = false;
  panel.dataset.level = level;
  $("level-name").textContent = `Level ${level}`;
  $("level-facts").textContent = `${facts.join(" · ")}.`;
  $("level-picture").replaceChildren(...(hasPicture(of.row) ? [picture(level, of.row?.picture)] : []));
  $("level-payload").hidden = !of.payload;
  $("level-payload").textContent = of.payload ?? "";
  $("level-ancestors").hidden = !of.ancestors?.length;
  $("level-ancestors").replaceChildren(...ancestors(of.ancestors ?? []));
  past ??= new Chart(PAST, $("level-past"));
  if (of.history?.t?.length) past.update({ counters: {}, history: { columns: of.history } });
  past.figure.hidden = !of.history?.t?.length;
  if (isNew) $("level-name").focus();
}

const hasPicture = (row) => (isLive ? shown.curricula[selected].has_pictures : row?.picture);

async function levelOf(level) {
  if (!isLive) {
    const row = shown.curricula[selected].levels.rows.find(({ id }) => id === level);
    return { row, history: row.history ?? {} };
  }
  try {
    const reply = await fetch(`level?${new URLSearchParams({ curriculum: selected, level })}`);
    return reply.ok ? await reply.json() : null;
  } catch {
    return null; // the viewer is gone; what is there stays
  }
}

function ancestors(found) {
  const items = found.map(({ id, is_kept: isKept }) => {
    if (!isKept) return make("li", {}, `${id}, gone`);
    const button = make("button", { type: "button" }, id);
    if (hasPicture()) button.prepend(picture(id));
    button.addEventListener("click", () => showLevel(id));
    return make("li", {}, button);
  });
  return items.length ? [make("li", { class: "label" }, "made from"), ...items] : [];
}

$("level-close").addEventListener("click", () => {
  const level = opened;
  opened = null;
  $("level").hidden = true;
  delete $("level").dataset.level;
  (document.querySelector(`#rows tr[data-level="${level}"] button`) ?? $("find")).focus();
});

// ---- the server

const under = (seconds) => (seconds === null ? "–" : `< ${duration(seconds)}`);

function showRequests() {
  const asked = shown.requests ?? [];
  $("server").hidden = !asked.length;
  const now = shown.lost_s === null ? asked : [];
  const errors = asked.reduce((sum, { errors: of }) => sum + of, 0);
  $("server-note").textContent = `${counted(now.reduce((sum, { per_s: of }) => sum + of, 0), "request")} a second, ` +
    `${number(errors)} refused since it was started. The times are those of the last seconds, without waiting.`;
  $("requests").replaceChildren(...asked.map((of) => make("tr", { "data-op": of.op },
    ...[of.op, number(of.per_s), under(of.p50_s), under(of.p99_s), number(of.errors)]
      .map((text) => make("td", {}, text)))));
}

// ---- all of it

let drawn = null; // of which curriculum, and of which look at its levels, the charts and the table are

function show() {
  showHeader();
  showCurricula();
  showVerdict();
  showTiles();
  showRequests();
  const now = shown.curricula[selected];
  if (!now) return;
  const look = JSON.stringify([selected, now.history?.columns.t]);
  if (look === drawn) return; // a tick without a look costs a page next to nothing
  drawn = look;
  charts.forEach((chart) => chart.update(now));
  showLevels();
  if (opened !== null) showLevel(opened);
}

function select(name) {
  selected = name;
  opened = null;
  $("level").hidden = true;
  if (isLive) listen();
  else show();
}

/** Brings the document up to date with a tick, whose history is the newest sample alone. */
function keepUp(tick) {
  const before = shown.curricula[tick.selected]?.history;
  shown = tick;
  const now = tick.curricula[tick.selected];
  if (!now) return;
  const { length, newest } = now.history;
  if (newest !== null) {
    for (const [name, value] of Object.entries(newest)) {
      before.columns[name] ??= [];
      before.columns[name].length = length - 1;
      before.columns[name].push(value);
    }
  }
  now.history = before;
}

function listen() {
  stream?.close();
  stream = new EventSource(`events?curriculum=${encodeURIComponent(selected ?? "")}`);
  const take = (keep) => (event) => {
    const said = JSON.parse(event.data);
    keep(said);
    selected = said.selected;
    show();
  };
  stream.addEventListener("document", take((said) => { shown = said; }));
  stream.addEventListener("tick", take(keepUp));
  stream.addEventListener("error", () => connection("lost", "the viewer has stopped; start plr-server view again"));
}

if (isLive) {
  listen();
  // A browser opens few connections to one host, and a hidden page has nothing to show.
  document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : listen()));
} else {
  shown = JSON.parse(saved);
  [selected = null] = Object.keys(shown.curricula);
  if (location.protocol === "file:") $("save").hidden = true;
  show();
}
