// What a reader would see go wrong on a page; each function returns the findings as texts.

const scrolls = (element) => {
  for (let e = element; e; e = e.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
  return false;
};

// Elements that reach beyond the window and cannot be scrolled into it, and texts that their box or chart cuts.
const cutOff = () => {
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (!e.checkVisibility() || e.closest(".skip")) continue;
    const box = e.getBoundingClientRect();
    if ((box.right > innerWidth + 1 || box.left < -1) && !scrolls(e))
      found.push(`${e.tagName} ${e.getAttribute("class")} reaches from ${box.left} to ${box.right}`);
    const hides = ["hidden", "clip"].includes(getComputedStyle(e).overflowX);
    if (hides && !(e instanceof SVGElement) && e.scrollWidth > e.clientWidth + 1) found.push(`${e.tagName} cuts its text`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    if (!svg.checkVisibility()) continue;
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        found.push(`"${text.textContent}" leaves its chart`);
    }
  }
  return found;
};

// Texts whose contrast with what is behind them is below 4.5 (WCAG 2, level AA).
const lowContrast = () => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("p, th, td, li, dt, dd, pre, summary, span, h1, h2, h3, a, label, button")) {
    if (!e.textContent.trim() || !e.checkVisibility()) continue;
    const [dark, bright] = [luminance(rgb(getComputedStyle(e).color)), luminance(behind(e))].sort((x, y) => x - y);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName} ${e.className} "${e.textContent.trim().slice(0, 20)}" ${ratio.toFixed(2)}`);
  }
  return found;
};

const openAll = () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
};
