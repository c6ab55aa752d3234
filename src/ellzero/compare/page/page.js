// Draws the figures of the page, in the colours of the reader's scheme and again when it changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const themes = {
    light: { ink: "#1b1f24", grid: "#e3e7eb", card: "#ffffff", line: "#8a949e",
             series: ["#0072b2", "#c8501e", "#00855f", "#b0568c", "#8a6100", "#2d8fc4", "#5b4bb2", "#5c6670"] },
    dark: { ink: "#e8ebef", grid: "#30363e", card: "#1d2127", line: "#7b8691",
            series: ["#56b4e9", "#f58a4b", "#2fc79b", "#e39ac4", "#e6b422", "#9ad4f5", "#a99cf0", "#b8c1ca"] },
  };
  const faint = (hex) => hex + "26";

  function traces(figure, theme) {
    return figure.traces.map((trace) => {
      const colour = trace.colour === null ? theme.ink : theme.series[trace.colour % theme.series.length];
      const drawn = { ...trace, line: { ...trace.line, color: colour } };
      delete drawn.colour;
      const open = String((trace.marker || {}).symbol || "").endsWith("-open");
      drawn.marker = { ...trace.marker, color: colour,
                       line: { width: open ? 2 : 1, color: open ? colour : theme.card } };
      for (const axis of ["error_x", "error_y"]) {
        if (drawn[axis]) drawn[axis] = { ...drawn[axis], color: colour, thickness: 1.5, width: 4 };
      }
      return drawn;
    });
  }

  function layout(figure, theme) {
    // the legend's place is a share of the plot's height, and the plots side by side are lower
    const low = document.getElementById(figure.id).closest(".pair") ? -0.34 : -0.22;
    const axis = (given) => ({
      ...given, automargin: true, gridcolor: theme.grid, linecolor: theme.line, zeroline: false, ticks: "outside",
      tickcolor: theme.line, title: { text: given.title, standoff: 10 },
    });
    return {
      autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: theme.ink, size: narrow.matches ? 12 : 13, family: "system-ui, -apple-system, sans-serif" },
      margin: { l: 48, r: 14, t: narrow.matches ? 10 : 34, b: 44 }, hovermode: "closest",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.line, activecolor: theme.ink },
      hoverlabel: { bgcolor: theme.card, bordercolor: theme.line, font: { color: theme.ink }, align: "left" },
      legend: { orientation: "h", x: 0, xanchor: "left", y: low, yanchor: "top" },
      xaxis: axis(figure.x), yaxis: axis(figure.y),
      shapes: figure.bands.map((band) => ({
        type: "rect", xref: "paper", x0: 0, x1: 1, y0: band.low, y1: band.high, line: { width: 0 },
        layer: "below", fillcolor: faint(theme.series[band.colour % theme.series.length]),
      })),
    };
  }

  function draw() {
    const theme = dark.matches ? themes.dark : themes.light;
    for (const figure of figures) {
      const options = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
                        modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
      Plotly.react(figure.id, traces(figure, theme), layout(figure, theme), options);
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
})();
