// Redoc's logo is the one image that it would load from outside, so such an address is not set.
const { setAttribute } = Element.prototype;
HTMLImageElement.prototype.setAttribute = function (name, value) {
  if (name !== "src" || !/^https?:/.test(value)) setAttribute.call(this, name, value);
};
Object.defineProperty(HTMLImageElement.prototype, "src", {
  get() { return this.getAttribute("src") ?? ""; },
  set(value) { this.setAttribute("src", value); },
});

const typography = { fontFamily: "system-ui, sans-serif", headings: { fontFamily: "system-ui, sans-serif" } };
Redoc.init("/openapi.json", { theme: { typography } }, document.getElementById("page"));
