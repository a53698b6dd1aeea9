function draw(id, figure) {
  Plotly.newPlot(id, figure.data, figure.layout, {displaylogo: false, displayModeBar: false});
}
// On paper nothing can be unfolded: short tables are printed open, long ones are left out.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not(.screen)").forEach((d) => { d.open = true; });
});
