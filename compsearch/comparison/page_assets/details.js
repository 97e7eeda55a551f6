// What is said about one point: beside the mouse in short, and pinned below its plot in full.
// Everything that comes from runs enters the page as text, never as markup.
const Details = (() => {
  const BLOCKS = "▁▂▃▄▅▆▇█";
  const NOTHING = "–";
  const STAGES = { before: "before fine-tuning", after: "after fine-tuning", dense: "dense" };

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  const percent = (fraction) => (fraction === null ? NOTHING : `${(100 * fraction).toFixed(2)}%`);
  const ratio = (value) => (value === null ? NOTHING : value.toFixed(3));

  function count(value) {
    for (const [factor, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
      if (value >= factor) return `${Number((value / factor).toPrecision(4))}${unit}`;
    }
    return `${Number(value.toPrecision(4))}`;
  }

  // A policy's groups, [{name, count, size}], size null where it is not known.
  function groups(facet, policy) {
    const space = facet.spaces[policy.space];
    return policy.counts.map((kept, index) => ({
      name: space.groups[index],
      count: kept,
      size: space.sizes && space.sizes[index],
    }));
  }

  function sparkline(kept) {
    if (!kept.length || kept.some((group) => !group.size)) return "";
    return kept.map((group) => BLOCKS[Math.max(Math.ceil((8 * group.count) / group.size), 1) - 1]).join("");
  }

  const groupText = (group) => `${group.name} ${group.count}${group.size ? `/${group.size}` : ""}`;

  function policyInShort(kept, policy) {
    const parts = [];
    if (kept.length) {
      const shown = kept.length <= 5 ? kept.map(groupText) : [kept[0], kept[1]].map(groupText);
      if (kept.length > 5) shown.push(`… ${groupText(kept[kept.length - 1])}`);
      parts.push(`${kept.length} group${kept.length > 1 ? "s" : ""}: ${shown.join(", ")}`);
    }
    if (policy.operations) parts.push(`operations: ${policy.operations}`);
    return parts.join("; ");
  }

  function costs(network) {
    const found = [];
    const { macs, params, latency_ms: latency } = network.ratios;
    if (macs !== null) found.push(`FLOPs (MACs) ${ratio(macs)}`);
    if (params !== null) found.push(`parameters ${ratio(params)}`);
    if (latency !== null) {
      const spread = network.latency_p10 === null ? "" : ` (${ratio(network.latency_p10)}–${ratio(network.latency_p90)})`;
      found.push(`latency ${ratio(latency)}${spread}`);
    }
    return found.join(" · ");
  }

  // [[what, value], …] of a point {kind: "network" | "trial" | "curve", …}.
  function facts(facet, point) {
    if (point.kind === "network") {
      const network = facet.networks[point.index];
      return [
        ["stage", STAGES[network.stage]],
        ["budget asked", network.budget || "none"],
        ["achieved", `${costs(network)} of dense`],
        ["accuracy", `test ${percent(network.test)} · search ${percent(network.search)}`],
        ...(network.is_own || network.stage === "dense" ? [] : [["measured", "as the baseline of this run"]]),
      ];
    }
    const trials = facet.trials;
    if (point.kind === "trial") {
      const achieved = trials.costs.filter((cost) => cost.ratios[point.index] !== null);
      const objective = trials.objective[point.index];
      return [
        ["trial", `${trials.index[point.index]}`],
        ["budget asked", trials.budget[point.index] || "none"],
        ["achieved", `${achieved.map((cost) => `${cost.label} ${ratio(cost.ratios[point.index])}`).join(" · ")} of dense`],
        ["accuracy", `search ${percent(trials.accuracy[point.index])}`],
        ["objective", objective === null ? NOTHING : `${Number(objective.toPrecision(5))}`],
      ];
    }
    const curve = facet.curves[point.index];
    return [
      curve.quantity === "hypervolume"
        ? ["hypervolume so far", curve.values[point.step].toPrecision(4)]
        : ["best so far", `search ${percent(curve.values[point.step])}`],
      ["after", `${curve.trials[point.step]} trials, ${Math.round(curve.wall_s[point.step])} s`],
      ["budget asked", curve.budget || "none"],
    ];
  }

  function more(facet, point) {
    if (point.kind !== "network") return [];
    const network = facet.networks[point.index];
    const found = [["size", `${count(network.macs)} MACs · ${count(network.params)} parameters`]];
    if (network.latency_ms !== null) found[0][1] += ` · ${Number(network.latency_ms.toPrecision(3))} ms`;
    if (network.top5 !== null) found.push(["top-5", `test ${percent(network.top5)}`]);
    if (network.stage !== "dense") found.push(["search", `${network.trials} trials, ${Math.round(network.wall_s)} s`]);
    const same = facet.networks.filter(
      (other) => other.run === network.run && other.series === network.series && other.budget === network.budget,
    );
    const others = same.filter((other) => other.stage !== network.stage && other.stage !== "dense");
    for (const other of others) found.push([STAGES[other.stage], `test ${percent(other.test)}`]);
    return found;
  }

  const tableOf = { network: (facet) => facet.networks, curve: (facet) => facet.curves };
  const runOf = (facet, point) =>
    facet.runs[point.kind === "trial" ? facet.trials.run[point.index] : tableOf[point.kind](facet)[point.index].run];
  const policyOf = (facet, point) => {
    if (point.kind === "trial") return facet.trials.policy[point.index];
    return point.kind === "network" ? facet.networks[point.index].policy : null;
  };

  function seriesOf(facet, point) {
    const name =
      point.kind === "network"
        ? facet.networks[point.index].series
        : point.kind === "curve"
          ? facet.curves[point.index].series
          : facet.runs[facet.trials.run[point.index]].series;
    return facet.series.find((series) => series.name === name);
  }

  function seedOf(facet, point) {
    return point.kind === "network" ? facet.networks[point.index].seed : runOf(facet, point).seed;
  }

  function definitions(pairs) {
    return element("dl", {}, ...pairs.flatMap(([term, text]) => [
      element("dt", { textContent: term }),
      element("dd", { textContent: text }),
    ]));
  }

  // Beside the mouse ------------------------------------------------------------------------------------------------

  const tooltip = document.getElementById("tooltip");

  function show(facet, point, x, y) {
    const run = runOf(facet, point);
    const policy = policyOf(facet, point);
    const kept = policy ? groups(facet, policy) : [];
    const series = seriesOf(facet, point);
    const policyLines = [
      element("div", { className: "spark", textContent: sparkline(kept) }),
      element("div", { className: "policy", textContent: policy ? policyInShort(kept, policy) : "" }),
    ];
    tooltip.replaceChildren(
      element("strong", { textContent: `${series.label}, seed ${seedOf(facet, point)}` }),
      element("div", { className: "run", textContent: run.name }),
      definitions(facts(facet, point)),
      ...(policy ? policyLines : []),
      element("code", { textContent: run.command }),
    );
    tooltip.hidden = false;
    const { width, height } = tooltip.getBoundingClientRect();
    const right = x + 18 + width <= document.documentElement.clientWidth;
    const left = right ? x + 18 : x - 18 - width;
    tooltip.style.left = `${Math.max(left, 6)}px`;
    tooltip.style.top = `${Math.min(Math.max(y - height / 2, 6), Math.max(window.innerHeight - height - 6, 6))}px`;
  }

  function hide() {
    tooltip.hidden = true;
  }

  // Pinned ----------------------------------------------------------------------------------------------------------

  function bars(kept) {
    if (!sparkline(kept)) return null;
    const strip = element("div", { className: "bars" });
    strip.setAttribute("role", "img");
    strip.setAttribute("aria-label", `keep_ratio of ${kept.length} groups, from input to output`);
    for (const group of kept) {
      const share = group.count / group.size;
      const bar = element("span", { title: `${group.name}: ${group.count} of ${group.size} (${percent(share)})` });
      bar.append(element("i"));
      bar.firstChild.style.height = `${100 * share}%`;
      strip.append(bar);
    }
    return element("div", {}, strip, element("div", { className: "ends" },
      element("span", { textContent: kept[0].name }),
      element("span", { textContent: "keep_ratio per group" }),
      element("span", { textContent: kept[kept.length - 1].name }),
    ));
  }

  async function copy(button, source) {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "copy"), 2000);
  }

  function policySection(facet, policy) {
    if (!policy) return [element("p", { className: "note", textContent: "This run's folder holds no policy of this network." })];
    const kept = groups(facet, policy);
    const lines = kept.map(groupText);
    for (const [block, operation] of Object.entries(policy.blocks || {})) lines.push(`${block}: ${operation}`);
    return [
      bars(kept),
      policy.operations ? element("p", { textContent: `operations: ${policy.operations}` }) : null,
      element("details", { open: lines.length <= 12 },
        element("summary", { textContent: kept.length ? "kept of each group" : "operation of each block" }),
        element("ul", { className: "counts" }, ...lines.map((line) => element("li", { textContent: line }))),
      ),
    ].filter((part) => part !== null);
  }

  function pin(panel, facet, point, unpin) {
    const run = runOf(facet, point);
    const command = element("code", { textContent: run.command });
    const button = element("button", { type: "button", className: "copy", textContent: "copy" });
    button.addEventListener("click", () => copy(button, command));
    const close = element("button", { type: "button", className: "close", textContent: "✕", title: "unpin" });
    close.setAttribute("aria-label", "unpin");
    close.addEventListener("click", unpin);
    panel.replaceChildren(
      element("header", {},
        element("h4", { textContent: `${seriesOf(facet, point).label}, seed ${seedOf(facet, point)}` }),
        element("a", { className: "open", href: run.href, textContent: run.name, target: "_blank", rel: "noopener" }),
        close,
      ),
      element("div", { className: "columns" },
        definitions([...facts(facet, point), ...more(facet, point)]),
        element("div", {}, ...policySection(facet, policyOf(facet, point))),
      ),
      element("div", { className: "command" }, element("pre", {}, command), button),
      element("p", { className: "files" }, ...run.files.map((file) =>
        element("a", { href: file.href, textContent: file.name, target: "_blank", rel: "noopener" }),
      )),
    );
    panel.hidden = false;
  }

  return { element, show, hide, pin, runOf, seriesOf };
})();
