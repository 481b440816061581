// A chart of counts per day, as SVG.

import { svg } from "/elements.js";

const number = new Intl.NumberFormat();

// Draw two columns per row: [name, created, completed].
export function chart(rows) {
  const [width, height, step] = [rows.length * 40, 170, 40];
  const largest = 2 * Math.ceil(Math.max(4, ...rows.flatMap(([, ...counts]) => counts)) / 2);
  const drawing = svg("svg", { viewBox: `0 0 ${width + 16} ${height + 26}`, "aria-hidden": "true" });
  for (const part of [0, 0.5, 1]) {
    const y = height - part * (height - 20);
    drawing.append(svg("line", { x1: 0, x2: width + 16, y1: y, y2: y }));
    if (part) drawing.append(svg("text", { x: 0, y: y - 5, class: "scale" }, number.format(largest * part)));
  }
  rows.forEach(([day, ...counts], index) => {
    const middle = index * step + step / 2 + 8;
    counts.forEach((count, which) => drawing.append(column(middle, which, (count / largest) * (height - 20), height)));
    const fromEnd = rows.length - 1 - index;
    const kind = fromEnd % 4 ? "day minor" : "day";
    if (fromEnd % 2 === 0) drawing.append(svg("text", { x: middle, y: height + 21, class: kind }, day));
  });
  return drawing;
}

function column(middle, which, size, floor) {
  const place = { x: middle - 12 + which * 13, y: floor - size, width: 11, height: size, rx: 2.5 };
  return svg("rect", { ...place, class: which ? "done" : "created" });
}
