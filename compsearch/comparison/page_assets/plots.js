// The plots of every facet, and the controls that choose what they show.
(() => {
  const { element } = Details;
  const { theme, visible, baseLayout, accuracyAxis, padded, errorTicks, segmented, glyphOf, symbolShapes, isDark } = Frame;
  const data = JSON.parse(document.getElementById("data").textContent);
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    plotlyServerURL: "",
    showEditInChartStudio: false,
    showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };
  let isPrinting = false;
  let pointerType = "mouse"; // of the last press
  addEventListener("pointerdown", (event) => (pointerType = event.pointerType), true);

  class FacetView {
    constructor(root) {
      this.facet = data.facets[Number(root.dataset.facet)];
      this.root = root;
      this.panel = root.querySelector(".details");
      this.hidden = new Set();
      this.pinned = null;
      const stages = Object.keys(this.facet.stages);
      const budgets = [...new Set(this.facet.curves.map((curve) => curve.budget))];
      const numSeries = (stage) => new Set(this.facet.means.filter((mean) => mean.stage === stage).map((mean) => mean.series)).size;
      const stage = stages.reduce((best, next) => (numSeries(next) >= numSeries(best) ? next : best), stages[0]);
      this.state = { axis: 0, stage, scale: "auto", budget: budgets[0], against: "trials", quantity: "best_accuracy" };
      this.figures = {};
      for (const figure of root.querySelectorAll(".plot")) this.figures[figure.dataset.kind] = figure;
      this.addControls(stages, budgets);
    }

    set(key, value) {
      this.state[key] = value;
      this.draw();
    }

    addControls(stages, budgets) {
      const { facet, state } = this;
      const add = (kind, label, options, key) => {
        const figure = this.figures[kind];
        if (!figure || options.length < 2) return;
        const control = segmented(label, options, state[key], (value) => this.set(key, value));
        control.dataset.key = key;
        figure.querySelector(".controls").append(control);
      };
      const several = facet.axes.filter((axis) => axis.device).length > 1;
      const name = (axis, number) => axis.label.replace(" / dense", "") + (several && axis.device ? ` ${number - 1}` : "");
      add("pareto", "cost", facet.axes.map((axis, number) => [number, name(axis, number)]), "axis");
      add("pareto", "stage", stages.map((stage) => [stage, facet.stages[stage]]), "stage");
      const scales = [["auto", "auto"], ["linear", "linear"], ["log", "log error"]];
      add(this.figures.pareto ? "pareto" : "trials", "accuracy axis", scales, "scale");
      const against = [["trials", "trials"], ["wall_s", "seconds"]];
      if (facet.curves.some((curve) => curve.cpu_s.some((seconds) => seconds !== null))) {
        against.push(["cpu_s", "processor seconds"]);
      }
      const quantities = [["best_accuracy", "best accuracy"], ["hypervolume", "hypervolume"]];
      add("anytime", "so far", quantities, "quantity");
      add("anytime", "against", against, "against");
      add("anytime", "budget", budgets.map((budget) => [budget, budget || "none"]), "budget");
    }

    addLegend(shapes) {
      const legend = this.root.querySelector(".legend");
      const numbers = this.facet.series.filter((series) => series.num_seeds && !series.is_dense).map((series) => series.num_seeds);
      const differ = new Set(numbers).size > 1;
      for (const series of this.facet.series) {
        const glyph = glyphOf(series, shapes.get(series.symbol));
        const seeds = differ && series.num_seeds && !series.is_dense ? ` (${series.num_seeds} seed${series.num_seeds > 1 ? "s" : ""})` : "";
        const button = element("button", { type: "button" }, glyph, `${series.label}${seeds}`);
        button.dataset.series = series.name;
        button.title = "click: show or hide; double click: this one alone, or all";
        button.addEventListener("click", () => {
          if (!this.hidden.delete(series.name)) this.hidden.add(series.name);
          this.draw();
        });
        button.addEventListener("dblclick", () => {
          const others = this.facet.series.map((each) => each.name).filter((each) => each !== series.name);
          const isAlone = !this.hidden.has(series.name) && others.every((each) => this.hidden.has(each));
          this.hidden = new Set(isAlone ? [] : others);
          this.draw();
        });
        legend.append(button);
      }
    }

    get shown() {
      return this.facet.series.filter((series) => !this.hidden.has(series.name));
    }

    draw() {
      for (const button of this.root.querySelectorAll(".legend button")) {
        button.setAttribute("aria-pressed", String(!this.hidden.has(button.dataset.series)));
      }
      const colors = theme(isPrinting);
      for (const glyph of this.root.querySelectorAll(".legend svg")) {
        glyph.style.color = visible(glyph.dataset.color, colors.dark);
      }
      if (this.figures.pareto) this.drawPareto(colors);
      if (this.figures.trials) this.drawTrials(colors);
      if (this.figures.anytime) this.drawAnytime(colors);
    }

    async render(kind, traces, layout, readPoint) {
      const canvas = this.figures[kind].querySelector(".canvas");
      // Paper is narrower than the window, and nothing is told when the page is laid out for it.
      if (isPrinting) Object.assign(layout, { width: 690, height: 400 });
      const isNew = !canvas.classList.contains("js-plotly-plot");
      await Plotly.react(canvas, traces, layout, CONFIG);
      canvas.readPoint = readPoint;
      if (!isNew) return;
      const pointOf = (event) => canvas.readPoint(event.points[0]);
      canvas.on("plotly_hover", (event) => {
        const point = pointOf(event);
        if (point) Details.show(this.facet, point, event.event.clientX, event.event.clientY);
      });
      canvas.on("plotly_unhover", Details.hide);
      canvas.on("plotly_click", (event) => {
        const point = pointOf(event);
        if (point) this.open(point, this.figures[kind]);
      });
      canvas.on("plotly_relayout", (change) => {
        const isZoom = Object.keys(change).some((key) => key.startsWith("yaxis.range") || key === "yaxis.autorange");
        if (!isZoom || canvas.layout.yaxis.type !== "log") return;
        const ticks = errorTicks(canvas.layout.yaxis.range);
        Plotly.relayout(canvas, { "yaxis.tickvals": ticks.tickvals, "yaxis.ticktext": ticks.ticktext });
      });
    }

    open(point, figure) {
      this.pinned = point;
      (figure.closest(".pair") || figure).after(this.panel);
      Details.pin(this.panel, this.facet, point, () => {
        this.pinned = null;
        this.panel.hidden = true;
        this.draw();
      });
      this.draw();
      // On a touch screen a tap is also the only way to look closer; there the link in the panel opens the run.
      if (pointerType !== "touch") window.open(Details.runOf(this.facet, point).href, "_blank", "noopener");
    }

    ring(kind, x, y, colors) {
      if (!this.pinned || this.pinned.kind !== kind || x === null || y === null) return [];
      const marker = { symbol: "circle-open", size: 22, color: colors.text, line: { width: 2 } };
      return [{ type: "scatter", mode: "markers", x: [x], y: [y], marker, hoverinfo: "skip" }];
    }

    drawPareto(colors) {
      const { facet, state } = this;
      const axis = facet.axes[state.axis];
      const isDrawn = (network) =>
        (network.stage === state.stage || network.stage === "dense") &&
        network.x[state.axis] !== null &&
        !this.hidden.has(network.series);
      const means = facet.means.filter((mean) => mean.axis === state.axis && mean.stage === state.stage);
      const drawn = facet.networks.filter(isDrawn);
      const shownMeans = means.filter((mean) => !this.hidden.has(mean.series));
      const bars = shownMeans.flatMap((mean) =>
        mean.accuracy.flatMap((accuracy, index) => [accuracy - (mean.std[index] || 0), Math.min(1, accuracy + (mean.std[index] || 0))]),
      );
      const scale = accuracyAxis([...drawn.map((network) => network.test), ...bars], state.scale);
      const singles = [];
      const lines = [];
      // The first of the legend last: on top.
      for (const series of [...this.shown].reverse()) {
        const color = visible(series.color, colors.dark);
        const indices = facet.networks.map((_, index) => index);
        const own = indices.filter((index) => facet.networks[index].series === series.name && isDrawn(facet.networks[index]));
        singles.push({
          type: "scatter",
          mode: "markers",
          name: series.name,
          x: own.map((index) => facet.networks[index].x[state.axis]),
          y: own.map((index) => scale.place(facet.networks[index].test)),
          customdata: own,
          marker: {
            symbol: series.symbol,
            color,
            size: (series.is_dense ? 11 : 7.5) * series.size,
            opacity: series.is_dense ? 1 : 0.5,
            line: { width: 0 },
          },
          hoverinfo: "none",
        });
        for (const mean of means.filter((each) => each.series === series.name)) {
          lines.push(meanTrace(mean, series, color, scale, Boolean(axis.device)));
        }
      }
      const layout = baseLayout(colors, `${axis.label}, as achieved`, `top-1 accuracy, test split${scale.note}`);
      Object.assign(layout.yaxis, scale.layout);
      const compressed = drawn.filter((network) => network.stage !== "dense");
      if (compressed.length) {
        const latencies = shownMeans.flatMap((mean) => [...mean.low, ...mean.high]).filter((value) => value !== null);
        layout.xaxis.range = padded([...compressed.map((network) => network.x[state.axis]), ...latencies], 0.01);
        // The dense network is far to the right of all: its line tells its accuracy, and zooming out shows its mark.
        if (layout.xaxis.range[1] > 0.85) layout.xaxis.range[1] = Math.max(1.03, layout.xaxis.range[1]);
      }
      layout.shapes = this.guides(axis, drawn, scale, colors);
      layout.annotations.push(...this.denseLabel(drawn, scale, colors));
      const pinned = this.pinned && this.pinned.kind === "network" ? facet.networks[this.pinned.index] : null;
      const ring = pinned && isDrawn(pinned) ? this.ring("network", pinned.x[state.axis], scale.place(pinned.test), colors) : [];
      this.render("pareto", [...singles, ...lines, ...ring], layout, (hit) =>
        Number.isInteger(hit.customdata) ? { kind: "network", index: hit.customdata } : null,
      );
      let note = this.figures.pareto.querySelector(".device");
      if (!note) this.figures.pareto.append((note = element("p", { className: "note device" })));
      note.textContent = axis.device ? `latency: ${axis.device}; bars are the 10th to 90th percentile` : "";
    }

    denseLabel(drawn, scale, colors) {
      const dense = drawn.filter((network) => network.stage === "dense");
      if (!dense.length) return [];
      const y = scale.isLog ? Math.log10(scale.place(dense[0].test)) : dense[0].test;
      const text = `dense ${(100 * dense[0].test).toFixed(2)}%`;
      const font = { size: 12, color: colors.muted };
      return [{ text, font, xref: "paper", x: 0, xshift: 4, xanchor: "left", y, yanchor: "bottom", showarrow: false }];
    }

    // The dense network's accuracy, and the budgets that were asked for of this axis' cost.
    guides(axis, drawn, scale, colors) {
      const line = { color: colors.muted, width: 1, dash: "dot" };
      const dense = drawn.filter((network) => network.stage === "dense");
      const shapes = [];
      if (dense.length) {
        const y = scale.place(dense[0].test);
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line, layer: "below" });
      }
      const isAsked = (network) =>
        network.asked !== null && network.resource.replace("_ms", "") === axis.column.replace("_ratio", "");
      for (const x of new Set(drawn.filter(isAsked).map((network) => network.asked))) {
        shapes.push({ type: "line", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line, layer: "below" });
      }
      return shapes;
    }

    drawTrials(colors) {
      const { trials, axes, series: allSeries } = this.facet;
      const wanted = axes.length ? axes[this.state.axis].column : "";
      const cost = trials.costs.find((each) => each.column === wanted) || trials.costs[0];
      if (!cost) return;
      const seriesOf = trials.run.map((run) => this.facet.runs[run].series);
      const isDrawn = (index) =>
        !this.hidden.has(seriesOf[index]) && trials.accuracy[index] !== null && cost.ratios[index] !== null;
      const drawn = trials.run.map((_, index) => index).filter(isDrawn);
      const scale = accuracyAxis(drawn.map((index) => trials.accuracy[index]), this.state.scale);
      const traces = [...allSeries].reverse().map((series) => {
        const own = drawn.filter((index) => seriesOf[index] === series.name);
        return {
          type: "scatter",
          mode: "markers",
          name: series.name,
          x: own.map((index) => cost.ratios[index]),
          y: own.map((index) => scale.place(trials.accuracy[index])),
          customdata: own,
          marker: { symbol: series.symbol, color: visible(series.color, colors.dark), size: 5 * series.size, opacity: 0.45 },
          hoverinfo: "none",
        };
      });
      const layout = baseLayout(colors, `${cost.label} / dense, as achieved`, `top-1 accuracy, search split${scale.note}`);
      Object.assign(layout.yaxis, scale.layout);
      if (drawn.length) layout.xaxis.range = padded(drawn.map((index) => cost.ratios[index]), 0.01);
      const index = this.pinned && this.pinned.kind === "trial" && isDrawn(this.pinned.index) ? this.pinned.index : null;
      const ring = index === null ? [] : this.ring("trial", cost.ratios[index], scale.place(trials.accuracy[index]), colors);
      this.render("trials", [...traces, ...ring], layout, (hit) =>
        Number.isInteger(hit.customdata) ? { kind: "trial", index: hit.customdata } : null,
      );
    }

    drawAnytime(colors) {
      const { facet, state } = this;
      const labels = { trials: "trials", wall_s: "seconds of search, by the clock", cpu_s: "seconds of processors" };
      const drawn = facet.curves
        .map((curve, index) => ({ curve, index }))
        .filter(({ curve }) => curve.quantity === state.quantity && curve.budget === state.budget)
        .filter(({ curve }) => !this.hidden.has(curve.series));
      const isAccuracy = state.quantity === "best_accuracy";
      const values = drawn.flatMap(({ curve }) => curve.values);
      const scale = isAccuracy ? accuracyAxis(values, state.scale) : { place: (value) => value, layout: {} };
      const traces = drawn.map(({ curve, index }) => {
        const series = facet.series.find((each) => each.name === curve.series);
        return {
          type: "scatter",
          mode: "lines+markers",
          name: series.name,
          x: curve[state.against],
          y: curve.values.map(scale.place),
          customdata: curve.values.map((_, step) => [index, step]),
          line: { shape: "hv", width: 1.6, dash: series.dash, color: visible(series.color, colors.dark) },
          marker: { symbol: series.symbol, size: 4.5 * series.size, color: visible(series.color, colors.dark) },
          hoverinfo: "none",
        };
      });
      const reached = isAccuracy ? `best top-1, search split${scale.note}` : "hypervolume, search split";
      const layout = baseLayout(colors, labels[state.against], reached);
      Object.assign(layout.yaxis, scale.layout);
      layout.xaxis.rangemode = "tozero";
      this.render("anytime", traces, layout, (hit) =>
        Array.isArray(hit.customdata) ? { kind: "curve", index: hit.customdata[0], step: hit.customdata[1] } : null,
      );
    }
  }

  function meanTrace(mean, series, color, scale, isLatency) {
    const places = mean.accuracy.map(scale.place);
    // On a log scale of the error a bar must not reach an error of nothing.
    const bars = mean.std.map((std, index) => (scale.isLog ? Math.min(std, 0.9 * places[index]) : std));
    const trace = {
      type: "scatter",
      mode: "lines+markers",
      x: mean.cost,
      y: places,
      line: { color, width: 1.8, dash: series.dash },
      marker: { symbol: series.symbol, color, size: 10 * series.size, line: { color: "white", width: 0.6 } },
      error_y: { type: "data", array: bars, color, thickness: 1.1, width: 3 },
      hoverinfo: "skip",
    };
    if (isLatency) {
      const side = (bound, sign) => bound.map((value, index) => (value === null ? 0 : Math.max(sign * (value - mean.cost[index]), 0)));
      trace.error_x = { type: "data", symmetric: false, array: side(mean.high, 1), arrayminus: side(mean.low, -1), color, thickness: 0.7, width: 0 };
    }
    return trace;
  }

  const views = Array.from(document.querySelectorAll(".facet"), (root) => new FacetView(root));
  const drawAll = () => views.forEach((view) => view.draw());
  const symbols = data.facets.flatMap((facet) => facet.series.map((series) => series.symbol));
  symbolShapes([...new Set(symbols)]).then((shapes) => {
    views.forEach((view) => view.addLegend(shapes));
    drawAll();
    document.documentElement.dataset.ready = "true";
  });
  isDark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    isPrinting = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    isPrinting = false;
    drawAll();
  });
})();
