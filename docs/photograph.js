// What does not fit on the page that is open: a list of sentences.
(theme) => {
  const faults = [];
  const root = document.documentElement;
  const wide = innerWidth > 1000;
  const add = (what, text) =>
    faults.push(`${what}: ${text.trim().replace(/\s+/g, " ").slice(0, 70)}`);
  const name = (node) => node.tagName.toLowerCase() +
    (node.className && node.className.split ? "." + node.className.trim().split(/\s+/).join(".") : "");
  if (root.dataset.theme !== theme) add("theme", `${root.dataset.theme}, not ${theme}`);
  if (root.scrollWidth > innerWidth + 1) add("page wider than the window", `${root.scrollWidth}`);
  const main = document.querySelector(".bd-main") || document.body;
  const article = document.querySelector(".bd-article-container");
  const edge = article ? article.getBoundingClientRect().right + 1 : innerWidth + 1;

  const shown = (node) => {
    if (node.closest(".visually-hidden, .sr-only, script, style, noscript, template, head")) return false;
    return node.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true });
  };
  // Where a box is cut, or leaves the page, or lies over its neighbor.
  const place = (node, box, text) => {
    if (box.width < 1 || box.height < 1) return;
    for (let up = node; up && up !== root; up = up.parentElement) {
      const style = getComputedStyle(up), frame = up.getBoundingClientRect();
      if (style.display === "inline" || style.display === "contents") continue;
      const out = box.right > frame.right + 1.5 || box.left < frame.left - 1.5;
      // The whole page must not scroll sideways, only what is in it.
      if (/auto|scroll/.test(style.overflowX) && up !== article) return;
      if (out && /hidden|clip/.test(style.overflowX)) {
        if (style.textOverflow !== "ellipsis") add(`cut by ${name(up)}`, text);
        return;
      }
      if (out && /^(TD|TH|PRE)$/.test(up.tagName)) return add(`leaves ${name(up)}`, text);
    }
    if (article && article.contains(node) && box.right > edge) add("leaves the column", text);
    else if (box.right > innerWidth + 1 && main.contains(node)) add("leaves the window", text);
  };

  const channels = (color) => (color.match(/[\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let up = node; up; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (style.backgroundImage !== "none") return null;
      const [r, g, b, a = 1] = channels(style.backgroundColor);
      if (a > 0.5) return [r, g, b];
    }
    return theme === "dark" ? [0, 0, 0] : [255, 255, 255];
  };
  const contrast = (node, text) => {
    const color = getComputedStyle(node).color, back = behind(node);
    if (!back || !color.startsWith("rgb")) return;
    const [a, b] = [light(channels(color).slice(0, 3)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 3) add(`contrast ${ratio.toFixed(1)} of ${theme}, ${name(node)}`, text);
  };

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement;
    if (!text.data.trim() || !parent || !shown(parent)) continue;
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) place(parent, box, text.data);
    contrast(parent, text.data);
    if (!main.contains(parent) || parent.closest("pre, .bd-sidebar-secondary")) continue;
    // A name on two lines.
    for (const word of text.data.matchAll(/[A-Za-z_][\w.]*\w/g)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const tops = [...range.getClientRects()].filter((box) => box.width > 0.5).map((box) => box.top);
      if (Math.max(...tops) - Math.min(...tops) > 4) add("broken", word[0]);
    }
  }
  for (const node of document.querySelectorAll("img, svg, canvas, video, iframe, math, table")) {
    if (!shown(node) || node.parentElement.closest("svg, math")) continue;
    place(node.parentElement, node.getBoundingClientRect(), node.currentSrc || name(node));
  }
  for (const image of document.images)
    if (!image.naturalWidth && shown(image)) add("no picture", image.src);
  for (const node of main.querySelectorAll("*")) {
    if (!wide || node.scrollWidth <= node.clientWidth + 1 || !shown(node)) continue;
    if (/auto|scroll/.test(getComputedStyle(node).overflowX))
      add(`scrolls sideways by ${node.scrollWidth - node.clientWidth}, ${name(node)}`, node.innerText || "");
  }
  return faults;
}
