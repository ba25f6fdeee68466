// The lab's look. Ink, ground and accent are those of the page: the book's theme, JupyterLab's, or the system's.

export const STYLE = `
.bnlab { --ink: var(--pst-color-text-base, var(--jp-content-font-color1, CanvasText));
  --ground: var(--pst-color-surface, var(--jp-layout-color1, Canvas));
  --accent: var(--pst-color-primary, var(--jp-brand-color1, #0078c3));
  --line: color-mix(in srgb, var(--ink) 55%, transparent);
  color: var(--ink); font-size: 0.95rem; line-height: 1.4; container-type: inline-size; }
.bnlab * { box-sizing: border-box; }
.bnlab p { margin: 0.3rem 0; }
.bnlab-title { font-weight: 600; margin: 0.4rem 0; }
.bnlab fieldset { border: 1px solid var(--line); border-radius: 0.3rem; padding: 0.4rem 0.7rem; margin: 0; min-width: 0; }
.bnlab legend { font-weight: 600; font-size: 0.95rem; padding: 0 0.3rem; margin: 0; width: auto; float: none; }
.bnlab-controls, .bnlab-networks, .bnlab-charts, .bnlab-insights { display: grid; gap: 0.6rem 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); margin: 0.5rem 0; }
.bnlab-networks { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.bnlab-charts, .bnlab-insights { grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.bnlab-field { display: grid; grid-template-columns: minmax(5.5rem, 38%) 1fr; gap: 0.1rem 0.6rem; align-items: center;
  min-height: 2.2rem; }
.bnlab-field.ranged { grid-template-columns: minmax(5rem, 35%) 1fr minmax(2.6rem, max-content); }
.bnlab-field label { margin: 0; }
.bnlab-field output { text-align: right; font-variant-numeric: tabular-nums; }
.bnlab input, .bnlab select { min-width: 0; width: 100%; font: inherit; color: inherit; accent-color: var(--accent); }
.bnlab input[type=number], .bnlab select, .bnlab button { background: var(--ground); border: 1px solid var(--line);
  border-radius: 0.25rem; padding: 0.25rem 0.6rem; font: inherit; color: inherit; min-height: 2.2rem; }
.bnlab button { cursor: pointer; }
.bnlab button:disabled, .bnlab button[aria-disabled=true] { opacity: 0.5; cursor: default; }
.bnlab-run { border-color: var(--accent) !important; box-shadow: inset 0 0 0 1px var(--accent); min-width: 6rem; }
.bnlab :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.bnlab-buttons { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; margin: 0.5rem 0; }
.bnlab-status { font-variant-numeric: tabular-nums; }
.bnlab-notice { border-left: 0.25rem solid #d25a00; padding: 0.3rem 0.7rem; background: var(--ground); }
.bnlab details { border-top: 1px solid var(--line); padding: 0.2rem 0; }
.bnlab summary { cursor: pointer; font-weight: 600; padding: 0.5rem 0; min-height: 2.2rem; }
.bnlab-legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; margin: 0.4rem 0; }
.bnlab-legend svg { vertical-align: middle; margin-right: 0.4rem; }
.bnlab-chart { margin: 0; min-width: 0; max-width: 30rem; }
.bnlab-chart figcaption { font-size: 0.9rem; margin: 0; color: inherit; text-align: left; }
.bnlab-chart svg { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
.bnlab-grid { stroke: currentColor; opacity: 0.14; }
.bnlab-line { fill: none; stroke-width: 2; }
.bnlab-layer { max-width: 19rem; margin: 0.4rem 0 0.6rem; }
.bnlab-scroll { overflow-x: auto; }
.bnlab table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; color: inherit;
  background: transparent; }
.bnlab th, .bnlab td { text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line);
  background: transparent; color: inherit; }
.bnlab th:first-child { text-align: left; }
.bnlab th { font-size: 0.9rem; }
.bnlab tbody th { font-weight: 600; }
.bnlab th small { display: block; font-size: 0.8em; font-weight: normal; }
.bnlab tbody tr:last-child td { overflow-wrap: anywhere; }
.bnlab caption { text-align: left; caption-side: top; color: inherit; font-weight: 600; }
.bnlab-pad { width: 192px; height: 192px; touch-action: none; cursor: crosshair; border: 1px solid var(--line);
  image-rendering: pixelated; }
.bnlab-picture { image-rendering: pixelated; }
.bnlab-pictures { display: flex; flex-wrap: wrap; gap: 4px; margin: 0.1rem 0 0.4rem; }
.bnlab-pictures canvas { outline: 1px solid var(--line); }
.bnlab-rowname { font-size: 0.85rem; }
.bnlab-bars { display: flex; gap: 4px; list-style: none; padding: 0; margin: 0.3rem 0; align-items: end; height: 62px; }
.bnlab-bars li { display: flex; flex-direction: column; align-items: center; justify-content: end; width: 1.4rem;
  margin: 0; }
.bnlab-bar { width: 100%; }
.bnlab-look { display: flex; flex-wrap: wrap; gap: 0.6rem 1.2rem; align-items: start; }
@container (max-width: 600px) {
  .bnlab th, .bnlab td { padding: 0.3rem 0.2rem; font-size: 0.72rem; }
  .bnlab-field { min-height: 44px; }
  .bnlab input[type], .bnlab select, .bnlab button, .bnlab summary { min-height: 44px; }
}
@media (pointer: coarse) {
  .bnlab input[type], .bnlab select, .bnlab button, .bnlab summary { min-height: 44px; }
}
`;
