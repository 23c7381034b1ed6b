"use strict";
(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  if (!("DecompressionStream" in window)) return;
  const packed = document.getElementById("plotly-packed").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);

  // In print the browser scales the drawing as it stands: no script runs between layout and paper.
  const scalable = (place) => {
    const { width, height } = place._fullLayout;
    place.style.setProperty("--ratio", `${width} / ${height}`);
    for (const drawing of place.querySelectorAll("svg.main-svg")) drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  };
  for (const [id, figure] of Object.entries(figures)) {
    const place = document.getElementById(`chart-${id}`);
    place.textContent = "";
    await Plotly.newPlot(place, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    place.on("plotly_afterplot", () => scalable(place));
    scalable(place);
  }
  document.documentElement.dataset.drawn = "yes";
})();
