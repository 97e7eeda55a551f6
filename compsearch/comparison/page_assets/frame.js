// What stands around the data of a plot: colours, axes, buttons, and the glyphs of the legend.
const Frame = (() => {
  const { element } = Details;
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
  const FLOOR = 0.004; // added to every error, so that a perfect network has a place on a log scale too
  const WIDE = 2.5; // from this factor between the largest and the smallest error on, their axis is logarithmic
  const isCoarse = matchMedia("(pointer: coarse)");
  const isDark = matchMedia("(prefers-color-scheme: dark)");

  function theme(isPrinting) {
    const style = getComputedStyle(document.documentElement);
    const variable = (name) => style.getPropertyValue(name).trim();
    if (isPrinting) return { text: "#1f2328", muted: "#59636e", grid: "#dddddd", dark: false };
    return { text: variable("--text"), muted: variable("--muted"), grid: variable("--grid"), dark: isDark.matches };
  }

  // Colours are made for white paper; the darkest are mixed with white on a dark screen.
  function visible(color, dark) {
    if (!dark) return color;
    const channels = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
    const lightness = (0.3 * channels[0] + 0.59 * channels[1] + 0.11 * channels[2]) / 255;
    const share = Math.max(0, 0.62 - lightness);
    return `rgb(${channels.map((channel) => Math.round(channel + share * (255 - channel))).join(",")})`;
  }

  function baseLayout(colors, xTitle, yTitle) {
    const axis = {
      gridcolor: colors.grid,
      linecolor: colors.grid,
      zeroline: false,
      automargin: true,
      ticks: "outside",
      tickcolor: colors.grid,
      ticklen: 4,
    };
    return {
      font: { family: FONT, size: 13, color: colors.text },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 14, t: 54, b: 44 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.muted, activecolor: colors.text },
      showlegend: false,
      hovermode: "closest",
      hoverdistance: 14,
      dragmode: isCoarse.matches ? false : "zoom",
      xaxis: { ...axis, title: { text: xTitle, standoff: 8, font: { size: 13 } } },
      yaxis: axis,
      // Lying above its axis: standing beside it, it would be cut off where the plot is low.
      annotations: [
        { text: yTitle, xref: "paper", yref: "paper", x: 0, y: 1, yshift: 6, xanchor: "left", yanchor: "bottom", showarrow: false },
      ],
    };
  }

  // An axis of accuracies: `place` says where one goes, `ticks` are for a log scale of the error, chosen anew on zoom.
  function accuracyAxis(values, scale) {
    const errors = values.filter((value) => value !== null).map((value) => 1 + FLOOR - value);
    if (!errors.length) return { isLog: false, place: (value) => value, layout: {}, note: "" };
    const low = Math.min(...errors);
    const high = Math.max(...errors);
    const isLog = scale === "log" || (scale === "auto" && high > WIDE * low);
    if (!isLog) {
      const range = padded([1 + FLOOR - high, 1 + FLOOR - low], 0.005);
      return { isLog, place: (value) => value, layout: { tickformat: ".1~%", range }, note: "" };
    }
    const margin = 0.06 * Math.log10(high / low) + 0.01;
    const range = [Math.log10(high) + margin, Math.log10(low) - margin];
    const place = (value) => (value === null ? null : 1 + FLOOR - value);
    return { isLog, place, layout: { type: "log", range, ...errorTicks(range) }, note: " (error on a log scale)" };
  }

  // The range of `values` with some room at both ends, at least `least`.
  function padded(values, least) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const margin = Math.max(0.06 * (high - low), least);
    return [low - margin, high + margin];
  }

  function errorTicks([bottom, top]) {
    const chosen = [];
    // The finer the step, the wider the gap that it may fill.
    for (const [step, gap] of [[10, 0.08], [5, 0.08], [2, 0.11], [1, 0.11], [0.5, 0.14], [0.2, 0.16], [0.1, 0.18]]) {
      for (let accuracy = 0; accuracy <= 100 + 1e-9; accuracy += step) {
        const at = Math.log10(1 + FLOOR - accuracy / 100);
        const isInside = at <= bottom && at >= top;
        if (isInside && chosen.every((other) => Math.abs(other.at - at) >= gap * (bottom - top))) {
          chosen.push({ at, text: `${Number(accuracy.toFixed(1))}%` });
        }
      }
    }
    return { tickvals: chosen.map(({ at }) => 10 ** at), ticktext: chosen.map(({ text }) => text) };
  }

  // One row of buttons of which one is chosen.
  function segmented(label, options, current, choose) {
    const group = element("div", { className: "segmented" }, element("span", { textContent: label }));
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", label);
    for (const [value, text] of options) {
      const button = element("button", { type: "button", textContent: text });
      button.dataset.value = value;
      button.setAttribute("aria-pressed", String(value === current));
      button.addEventListener("click", () => {
        for (const each of group.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
        choose(value);
      });
      group.append(button);
    }
    return group;
  }

  function glyphOf(series, shape) {
    const space = "http://www.w3.org/2000/svg";
    const make = (tag, attributes) => {
      const made = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    const svg = make("svg", { viewBox: "-17 -8 34 16", width: 34, height: 16, "aria-hidden": "true" });
    svg.dataset.color = series.color;
    const dash = series.dash === "solid" ? "none" : series.dash.replaceAll("px", "");
    svg.append(make("line", { x1: -17, x2: 17, y1: 0, y2: 0, stroke: "currentColor", "stroke-width": 1.6, "stroke-dasharray": dash }));
    svg.append(make("path", { d: shape || "", fill: "currentColor", transform: `scale(${series.size})` }));
    return svg;
  }

  // The outlines of plotly's symbols, by their names: drawn once out of sight and read off.
  async function symbolShapes(symbols) {
    const stage = element("div", { className: "offstage" });
    document.body.append(stage);
    const traces = symbols.map((symbol, index) => ({
      type: "scatter", mode: "markers", x: [index], y: [0], marker: { symbol, size: 10 },
    }));
    await Plotly.newPlot(stage, traces, { width: 300, height: 200, showlegend: false }, { staticPlot: true });
    const paths = Array.from(stage.querySelectorAll(".scatterlayer path.point"), (path) => path.getAttribute("d"));
    Plotly.purge(stage);
    stage.remove();
    return new Map(symbols.map((symbol, index) => [symbol, paths[index]]));
  }

  return { theme, visible, baseLayout, accuracyAxis, padded, errorTicks, segmented, glyphOf, symbolShapes, isDark };
})();
