// The dashboard: numbers, the newest changes, and a table of the tasks.

import { get, requestId, send, serverSentEvents, useToken, write } from "/api.js";
import { chart } from "/chart.js";
import { ago, element, updateAges } from "/elements.js";

const PAGE_SIZE = 25;
const DAYS = 14;
const NEWEST = 13;
const REFRESH_MS = 1000; // The shortest time between two refreshes that changes cause.
const STATUSES = ["PENDING", "IN_PROGRESS", "COMPLETED", "CANCELLED"];
const PRIORITIES = ["URGENT", "HIGH", "MEDIUM", "LOW"];
const OPEN = "(status = PENDING OR status = IN_PROGRESS)";

let order = { field: "updated_at", descending: true };
let shown = { tasks: [], next: "" };
const perDay = new Map(); // The start of a day: [created, completed].

const $ = (id) => document.getElementById(id);
const short = (value) => value.replace(/^TASK_(STATUS|PRIORITY)_/, "");
const words = (value) => short(value)[0] + short(value).slice(1).toLowerCase().replace("_", " ");
const number = new Intl.NumberFormat();

// --- What went wrong, and what happened ---

// A success takes back only the error of its own kind: of an action, or of following the changes.
function tell(error, kind) {
  $("notice").dataset.kind = kind;
  $("notice").hidden = !error;
  $("notice").textContent = error?.message ?? "";
  if (error?.status === 401 && !$("token").open) $("token").showModal();
}

function say(text) {
  $("said").textContent = text;
}

async function attempt(work, kind = "action") {
  try {
    await work();
    if ($("notice").dataset.kind === kind) tell(null, kind);
  } catch (error) {
    tell(error, kind);
  }
}

// --- Numbers ---

async function showStats() {
  const stats = await get("/tasks/stats/summary");
  const byStatus = countsOf(stats.by_status, "status");
  const byPriority = countsOf(stats.by_priority, "priority");
  showNumber("open", byStatus.PENDING + byStatus.IN_PROGRESS);
  showNumber("overdue", stats.overdue);
  showNumber("completed", byStatus.COMPLETED);
  showNumber("total", stats.total);
  showCounts($("by-status"), "status", STATUSES, byStatus);
  showCounts($("by-priority"), "priority", PRIORITIES, byPriority);
}

const countsOf = (counts, field) => Object.fromEntries(counts.map((each) => [short(each[field]), each.count]));

function showNumber(name, count) {
  const tile = document.querySelector(`[data-count=${name}]`);
  tile.firstElementChild.textContent = number.format(count);
  tile.classList.toggle("some", count > 0);
}

function showCounts(list, field, values, counts) {
  if (!list.children.length) list.append(...values.map((value) => countRow(field, value)));
  const largest = Math.max(1, ...Object.values(counts));
  values.forEach((value, index) => {
    const [, count, bar] = list.children[index].firstElementChild.children;
    count.textContent = number.format(counts[value]);
    bar.style.setProperty("--part", counts[value] / largest);
  });
}

function countRow(field, value) {
  const button = element("button", "", { type: "button", "data-filter": `${field} = ${value}` });
  const bar = element("i", "", { class: `bar ${value}`, "aria-hidden": "true" });
  button.append(element("span", words(value)), element("b"), bar);
  const row = element("li");
  row.append(button);
  return row;
}

// --- Days ---

function lastDays() {
  const today = new Date().setHours(0, 0, 0, 0);
  return Array.from({ length: DAYS }, (_, index) => {
    const day = new Date(today);
    day.setDate(day.getDate() - DAYS + 1 + index);
    return day;
  });
}

async function countDay(day) {
  const end = new Date(day);
  end.setDate(end.getDate() + 1);
  const within = (field) => `${field} >= "${day.toISOString()}" AND ${field} < "${end.toISOString()}"`;
  const count = async (filter) => (await get("/tasks/stats/summary", { filter })).total;
  // The bound of updated_at changes no result: it lets the database use that field's index.
  const completed = `${within("completed_at")} AND updated_at >= "${day.toISOString()}"`;
  perDay.set(+day, await Promise.all([count(within("created_at")), count(completed)]));
}

// Days before today are counted once: 28 calls when the page opens, 2 for a change.
async function showDays() {
  const days = lastDays();
  await Promise.all(days.filter((day, index) => index === DAYS - 1 || !perDay.has(+day)).map(countDay));
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const rows = days.map((day) => [date.format(day), ...perDay.get(+day)]);
  $("chart").replaceChildren(chart(rows));
  document.querySelector("#days tbody").replaceChildren(...rows.map(dayRow));
}

function dayRow([day, created, completed]) {
  const row = element("tr");
  row.append(element("th", day, { scope: "row" }), element("td", created), element("td", completed));
  return row;
}

// --- Newest changes ---

function verb({ type, task }) {
  if (type === "TYPE_DELETED") return "deleted";
  if (task.created_at === task.updated_at) return "created";
  if (task.completed_at === task.updated_at) return "completed";
  return type === "TYPE_ADDED" ? "restored" : "changed";
}

function change(event) {
  const { task } = event;
  const item = element("li", "", { class: verb(event) });
  item.append(element("span", verb(event)), element("strong", task.title), ago(task.deleted_at ?? task.updated_at));
  return item;
}

async function showNewest() {
  const { tasks } = await get("/tasks", { order_by: "updated_at desc", page_size: NEWEST });
  $("newest").replaceChildren(...tasks.map((task) => change({ task })));
}

// --- The table ---

async function listTasks(page_token) {
  const order_by = order.field + (order.descending ? " desc" : "");
  const page_size = page_token ? PAGE_SIZE : Math.max(PAGE_SIZE, Math.min(shown.tasks.length, 200));
  const page = await get("/tasks", { filter: $("filter").value, order_by, page_size, page_token });
  shown = { tasks: page_token ? [...shown.tasks, ...page.tasks] : page.tasks, next: page.next_page_token };
}

// One after the other, so that the answer to an older filter or order never replaces a newer one.
let listing = Promise.resolve();

function showTasks({ more = false } = {}) {
  const listed = listing.then(() => listAndShow(more ? shown.next : ""));
  listing = listed.catch(() => {});
  return listed;
}

async function listAndShow(page_token) {
  try {
    await listTasks(page_token);
  } catch (error) {
    if (error.status !== 400) throw error;
    $("filter-error").textContent = error.message;
    return;
  }
  $("filter-error").textContent = "";
  const focused = document.activeElement.closest("#rows tr")?.id;
  $("rows").replaceChildren(...shown.tasks.map(taskRow));
  if (focused) $(focused)?.querySelector("button").focus();
  $("none").hidden = shown.tasks.length > 0;
  $("more").hidden = !shown.next;
}

function taskRow(task) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  const [what, status, priority, assignee, due, updated, action] = row.cells;
  row.id = `task-${task.id}`;
  const [title, description, tags] = what.children;
  title.textContent = task.title;
  description.textContent = task.description;
  tags.append(...task.tags.map((tag) => element("span", tag)));
  mark(status, task.status);
  mark(priority, task.priority);
  assignee.append(task.assigned_to || "–");
  due.append(task.due_date ? ago(task.due_date) : "–");
  due.classList.toggle("late", isOpen(task) && new Date(task.due_date) < Date.now());
  updated.append(ago(task.updated_at));
  label(action.firstElementChild, task);
  return row;
}

const isOpen = (task) => ["PENDING", "IN_PROGRESS"].includes(short(task.status));

function mark(cell, value) {
  cell.firstElementChild.textContent = words(value);
  cell.firstElementChild.classList.add(short(value));
}

function label(button, task) {
  button.textContent = isOpen(task) ? "Complete" : "Reopen";
  button.setAttribute("aria-label", `${button.textContent} ${task.title}`);
  button.addEventListener("click", () => attempt(() => move(task)));
}

async function move(task) {
  const status = isOpen(task) ? "TASK_STATUS_COMPLETED" : "TASK_STATUS_PENDING";
  await write("PATCH", `/tasks/${task.id}`, { status }, { "if-match": task.etag });
  say(`${task.title}: ${words(status)}`);
  await refresh();
}

function sortBy(field) {
  order = { field, descending: field === order.field ? !order.descending : field !== "title" };
  showOrder();
  attempt(showTasks);
}

function showOrder() {
  for (const button of document.querySelectorAll("[data-order]")) {
    const sorted = order.descending ? "descending" : "ascending";
    const current = button.dataset.order === order.field;
    button.parentElement.setAttribute("aria-sort", current ? sorted : "none");
  }
}

function filterBy(filter) {
  $("filter").value = filter;
  attempt(showTasks);
  $("tasks").scrollIntoView();
}

// --- A new task ---

function readTask(form) {
  const { tags, due_date: due, ...task } = Object.fromEntries(new FormData(form));
  if (due) task.due_date = new Date(due).toISOString();
  return { ...task, tags: tags.split(",").map((tag) => tag.trim()).filter(Boolean) };
}

async function create(form) {
  const query = new URLSearchParams({ request_id: (form.dataset.request ||= requestId()) });
  try {
    const task = await write("POST", `/tasks?${query}`, readTask(form));
    $("new").close();
    forget(form);
    say(`Created ${task.title}`);
    await attempt(refresh);
  } catch (error) {
    showErrors(form, error);
  }
}

function forget(form) {
  form.reset();
  delete form.dataset.request;
  $("new-errors").replaceChildren();
}

// A request that may have arrived keeps its id; one that was refused gets a new one.
function showErrors(form, error) {
  if (error.status < 500) delete form.dataset.request;
  const messages = error.violations?.map(({ field, description }) => `${field.replace("task.", "")}: ${description}`);
  $("new-errors").replaceChildren(...(messages?.length ? messages : [error.message]).map((text) => element("li", text)));
}

// --- Live ---

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const refresh = () => Promise.all([showStats(), showDays(), showTasks()]);

// Refresh at once, and after changes that arrive meanwhile once more.
let refreshing = null;
let isStale = false;

function refreshSoon() {
  isStale = true;
  refreshing ??= refreshWhileStale().finally(() => (refreshing = null));
}

async function refreshWhileStale() {
  while (isStale) {
    isStale = false;
    await attempt(refresh, "following");
    updateAges();
    await pause(REFRESH_MS);
  }
}

function showLive(isLive) {
  $("live").textContent = isLive ? "Live" : "Reconnecting";
  $("live").classList.toggle("on", isLive);
}

function showChange(event) {
  $("newest").prepend(change(event));
  while ($("newest").children.length > NEWEST) $("newest").lastElementChild.remove();
  refreshSoon();
}

// The error of a stream's last message, with the HTTP status that it would have had as an answer.
function ended({ code, message }) {
  return Object.assign(new Error(message), { status: { 3: 400, 11: 400, 16: 401 }[code] });
}

// Follow the changes until the stream ends. What came before it is read once it is open.
async function follow(position) {
  const query = new URLSearchParams({ resume_token: position.token });
  const response = await send(`/tasks:watch?${query}`, { headers: { accept: "text/event-stream" }, signal: position.signal });
  showLive(true);
  if (!position.token) await attempt(() => Promise.all([refresh(), showNewest()]), "following");
  for await (const event of serverSentEvents(response.body)) {
    if (event.status) throw ended(event.status);
    if (event.task) showChange(event);
    position.token = event.resume_token || position.token;
  }
}

let following = new AbortController();

async function followForever() {
  const { signal } = following;
  const position = { token: "", signal };
  for (let wait = 500; !signal.aborted; wait = Math.min(2 * wait, 15000)) {
    const start = Date.now();
    try {
      await follow(position);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 400) position.token = ""; // Too old: begin anew.
      if (error.status) tell(error, "following");
    }
    showLive(false);
    if (Date.now() - start > 15000) wait = 500;
    await pause(wait);
  }
}

function begin() {
  following.abort();
  following = new AbortController();
  perDay.clear();
  followForever();
}

// --- Controls ---

const FILTERS = { open: () => OPEN, completed: () => "status = COMPLETED", total: () => "" };
FILTERS.overdue = () => `due_date < "${new Date().toISOString()}" AND ${OPEN}`;

function onClick({ target }) {
  const { count, filter, order: field } = target.closest("button")?.dataset ?? {};
  if (count) filterBy(FILTERS[count]());
  if (filter) filterBy(filter);
  if (field) sortBy(field);
  if (target.matches("[data-close]")) target.closest("dialog").close();
}

function onSubmit(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    work(form);
  });
}

document.addEventListener("click", onClick);
$("open-new").addEventListener("click", () => $("new").showModal());
$("open-token").addEventListener("click", () => $("token").showModal());
$("more").addEventListener("click", () => attempt(() => showTasks({ more: true })));
onSubmit($("search"), () => attempt(showTasks));
onSubmit($("new-form"), create);
onSubmit($("token-form"), (form) => {
  useToken(form.elements.token.value.trim());
  form.reset();
  $("token").close();
  begin();
});
// A task becomes overdue, and a day ends, without a change.
setInterval(() => document.hidden || refreshSoon(), 60_000);
showOrder();
begin();
