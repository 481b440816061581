// The REST API of this page's origin.

let token = ""; // In memory only: a reload forgets it.

export function useToken(text) {
  token = text;
}

class ApiError extends Error {
  constructor(status, body) {
    super(body.message || `The service answered ${status}.`);
    this.status = status;
    this.violations = (body.details ?? []).flatMap((detail) => detail.field_violations ?? []);
  }
}

export async function send(path, options = {}) {
  const credentials = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...credentials } });
  if (response.ok) return response;
  throw new ApiError(response.status, await response.json().catch(() => ({})));
}

export const get = async (path, query) => (await send(`${path}?${new URLSearchParams(query)}`)).json();

export async function write(method, path, body, headers = {}) {
  const content = { "content-type": "application/json", ...headers };
  return (await send(path, { method, body: JSON.stringify(body), headers: content })).json();
}

export function requestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

export async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", part; !(part = await reader.read()).done; ) {
    const events = (text + part.value).split("\n\n");
    text = events.pop();
    for (const event of events) if (event.startsWith("data:")) yield JSON.parse(event.slice(5));
  }
}
