// Elements of the page.

function filled(made, content, attributes) {
  made.append(content);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function element(name, content = "", attributes = {}) {
  return filled(document.createElement(name), content, attributes);
}

export function svg(name, attributes, content = "") {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), content, attributes);
}

export function ago(time) {
  return element("time", relative(new Date(time)), { datetime: time, title: new Date(time).toLocaleString() });
}

function relative(time) {
  const seconds = (time - Date.now()) / 1000;
  if (Math.abs(seconds) < 60) return "just now";
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size);
  return new Intl.RelativeTimeFormat(undefined, { style: "short" }).format(Math.trunc(seconds / size), unit);
}

// Say anew how long ago the times of the page are.
export function updateAges() {
  for (const made of document.querySelectorAll("time")) made.textContent = relative(new Date(made.dateTime));
}
