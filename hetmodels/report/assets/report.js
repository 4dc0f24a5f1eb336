"use strict";
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const at = (id) => document.getElementById(id);
  const palette = payload.palette;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function option(select, text, value) {
    const item = document.createElement("option");
    item.textContent = text;
    item.value = value;
    select.append(item);
  }

  // Maps: a surface of one map at a time, chosen by sliders.
  async function maps(data) {
    const bytes = new Int8Array(await inflate(data.maps));
    const voxels = data.size ** 3;
    const first = [];
    data.series.reduce((sum, series) => (first.push(sum), sum + series.labels.length), 0);
    const read = new Map();
    const volume = (number) => {
      if (!read.has(number)) {
        const found = new $3Dmol.VolumeData("", "none");
        const corner = -(data.size >> 1) * data.spacing;
        found.size = { x: data.size, y: data.size, z: data.size };
        found.unit = { x: data.spacing, y: data.spacing, z: data.spacing };
        found.origin = { x: corner, y: corner, z: corner };
        found.data = Float32Array.from(bytes.subarray(number * voxels, (number + 1) * voxels));
        read.set(number, found);
      }
      return read.get(number);
    };
    const viewer = $3Dmol.createViewer(at("viewer"), { backgroundColor: colour("--panel"), antialias: true });
    const [series, step, level] = ["series", "step", "level"].map(at);
    data.series.forEach((part, i) => option(series, part.name, i));
    at("series-label").hidden = data.series.length < 2;
    const draw = () => {
      const labels = data.series[series.value].labels;
      const place = Number(step.value);
      viewer.removeAllShapes();
      viewer.addIsosurface(volume(first[series.value] + place), {
        isoval: data.level * Number(level.value), color: data.colour, smoothness: 2,
      });
      viewer.render();
      at("state-label").textContent = labels[place];
      at("viewer").dataset.shown = labels[place];
    };
    const restart = () => {
      const count = data.series[series.value].labels.length;
      step.max = count - 1;
      step.value = data.middle ? Math.floor(count / 2) : 0;
      at("step-label").hidden = count < 2;
      draw();
    };
    series.addEventListener("change", restart);
    step.addEventListener("input", draw);
    level.addEventListener("input", draw);
    restart();
    viewer.zoomTo();
    viewer.rotate(-60, "x");
    viewer.zoom(1.25);
    viewer.render();
    dark.addEventListener("change", () => viewer.setBackgroundColor(colour("--panel")));
    new ResizeObserver(() => viewer.resize()).observe(at("viewer"));
  }

  // Particles: a scatter plot with a lasso; what is selected can be saved.
  async function particles(data) {
    const numbers = new Float32Array(await inflate(data.data));
    const column = (k) => numbers.subarray((k + 1) * data.count, (k + 2) * data.count);
    const rows = numbers.subarray(0, data.count);
    const star = data.star ? inflate(data.star).then((bytes) => new TextDecoder().decode(bytes)) : null;
    const [across, up, paint] = ["across", "up", "colour"].map(at);
    data.names.forEach((name, k) => [across, up, paint].forEach((select) => option(select, name, k)));
    across.value = 0;
    up.value = Math.min(1, data.names.length - 1);
    paint.value = Math.min(2, data.names.length - 1);
    let chosen = null;

    function report() {
      const count = chosen === null ? 0 : chosen.length;
      const of = data.of > data.count ? `${data.count} shown of ${data.of}` : `${data.of}`;
      at("chosen").textContent = chosen === null ? `${of} particles` : `${count} of ${of} selected`;
      at("save-rows").disabled = !count;
      at("save-star").disabled = !count || !star;
      at("clear").disabled = chosen === null;
      at("scatter").dataset.chosen = count;
    }

    function choose(indices) {
      chosen = indices;
      Plotly.restyle("scatter", { selectedpoints: [indices === null ? null : Array.from(indices)] });
      report();
    }

    function chips(labels, values) {
      at("chips").replaceChildren(...labels.map((label, kind) => {
        const inside = [];
        values.forEach((value, i) => { if (value === kind) inside.push(i); });
        const button = document.createElement("button");
        const dot = document.createElement("i");
        dot.style.background = palette[kind % palette.length];
        button.append(dot, `${label} (${inside.length})`);
        button.title = `select ${label}`;
        button.addEventListener("click", () => choose(inside));
        return button;
      }));
    }

    function marker() {
      const labels = data.labels[paint.value];
      const values = column(Number(paint.value));
      chips(labels, values);
      const size = data.count > 5000 ? 3 : 5;
      if (labels.length) {
        return { size, opacity: 0.65, color: Array.from(values, (v) => palette[v % palette.length]) };
      }
      const ends = Float32Array.from(values).sort();
      const part = (q) => ends[Math.min(ends.length - 1, Math.floor(q * ends.length))];
      return {
        size, opacity: 0.65, color: values, colorscale: "Viridis", cmin: part(0.01), cmax: part(0.99),
        colorbar: { title: { text: data.names[paint.value], side: "right" }, thickness: 10, outlinewidth: 0 },
      };
    }

    function layout() {
      const axis = (k) => ({
        title: { text: data.names[k] }, gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"),
      });
      return {
        margin: { l: 62, r: 10, t: 34, b: 48 }, dragmode: "lasso", hovermode: "closest", uirevision: "keep",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") },
        xaxis: axis(across.value), yaxis: axis(up.value),
      };
    }

    const type = document.createElement("canvas").getContext("webgl") ? "scattergl" : "scatter";
    function draw() {
      const trace = {
        type, mode: "markers", x: column(Number(across.value)), y: column(Number(up.value)), marker: marker(),
        customdata: rows, hovertemplate: "row %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        selectedpoints: chosen === null ? null : Array.from(chosen), unselected: { marker: { opacity: 0.08 } },
      };
      const settings = {
        responsive: true, displaylogo: false, displayModeBar: true,
        modeBarButtonsToRemove: ["autoScale2d"], toImageButtonOptions: { format: "png", scale: 2 },
      };
      Plotly.react("scatter", [trace], layout(), settings);
    }

    draw();
    report();
    [across, up, paint].forEach((select) => select.addEventListener("change", draw));
    dark.addEventListener("change", draw);
    at("scatter").on("plotly_selected", (event) => { if (event) choose(event.points.map((p) => p.pointIndex)); });
    at("scatter").on("plotly_deselect", () => choose(null));
    at("clear").addEventListener("click", () => choose(null));
    at("save-rows").addEventListener("click", () => {
      const list = Array.from(chosen, (i) => rows[i]).sort((a, b) => a - b);
      save(`${data.name}_rows.txt`, list.join("\n") + "\n");
    });
    at("save-star").addEventListener("click", async () => {
      save(`${data.name}_selected.star`, picked(await star, new Set(Array.from(chosen, (i) => rows[i]))));
    });
  }

  // The lines of a STAR file with only some rows of its last loop, which holds the particles.
  function picked(text, keep) {
    const lines = text.split("\n");
    let start = lines.lastIndexOf("loop_");
    start += 1;
    while (start < lines.length && (lines[start].startsWith("_") || !lines[start].trim())) start += 1;
    let row = -1;
    return lines.filter((line, i) => {
      if (i < start || !line.trim()) return true;
      row += 1;
      return keep.has(row);
    }).join("\n");
  }

  // A part of the page is drawn when the reader comes near it, so that the first screen is there at once.
  function near(element, draw) {
    let begun = false;
    const once = () => {
      if (begun) return;
      begun = true;
      draw();
    };
    const watch = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) once();
    }, { rootMargin: "500px" });
    watch.observe(element);
    addEventListener("beforeprint", once);
  }

  async function start() {
    if (payload.maps) await maps(payload.maps);
    near(at("scatter"), () => particles(payload.particles));
    document.body.dataset.ready = "yes";
  }
  requestAnimationFrame(() => setTimeout(start)); // after the text has been shown
})();
