// Serve four calls of TaskService with grpc-js and pg, in one process for each worker.
"use strict";

const cluster = require("node:cluster");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const { Pool } = require("pg");

const COLUMNS =
  "id, title, description, status, priority, assigned_to, due_date, tags, created_by, " +
  "created_at, updated_at, completed_at, deleted_at, to_hex(version) AS etag";
const GET = { name: "get", text: `SELECT ${COLUMNS} FROM tasks WHERE id = $1` };
const CREATE = {
  name: "create",
  text:
    "INSERT INTO tasks (id, title, description, status, priority, tags, created_by) " +
    `VALUES (gen_random_uuid(), $1, $2, 1, 2, $3, 'benchmark') RETURNING ${COLUMNS}`,
};
const LIST = {
  name: "list",
  text:
    `SELECT ${COLUMNS} FROM tasks WHERE deleted_at IS NULL ` +
    "ORDER BY created_at, id LIMIT $1",
};
const STATS = {
  name: "stats",
  text:
    "SELECT status, priority, count(*)::int AS count, " +
    "count(*) FILTER (WHERE status <= 2 AND due_date < now())::int AS overdue " +
    "FROM tasks WHERE deleted_at IS NULL GROUP BY status, priority",
};

function timestamp(date) {
  if (date === null) return null;
  const millis = date.getTime();
  return { seconds: Math.floor(millis / 1000), nanos: (millis % 1000) * 1e6 };
}

function taskOf(row) {
  for (const name of ["due_date", "created_at", "updated_at", "completed_at", "deleted_at"]) {
    row[name] = timestamp(row[name]);
  }
  return row;
}

function countsOf(rows, name) {
  const counts = new Map();
  for (const row of rows) counts.set(row[name], (counts.get(row[name]) ?? 0) + row.count);
  return [...counts].map(([value, count]) => ({ [name]: value, count }));
}

function statsOf(rows) {
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  return {
    total: sum("count"),
    overdue: sum("overdue"),
    by_status: countsOf(rows, "status"),
    by_priority: countsOf(rows, "priority"),
    as_of: timestamp(new Date()),
  };
}

// Turn an async function of the request into a handler.
function unary(work) {
  return (call, callback) =>
    work(call.request).then(
      (answer) => callback(null, answer),
      (error) => callback(error),
    );
}

function serve() {
  const pool = new Pool({ max: 4 });
  const run = async (statement, values) => (await pool.query({ ...statement, values })).rows;
  const definition = protoLoader.loadSync("taskservice/v1/task_service.proto", {
    keepCase: true,
    includeDirs: process.env.PROTO_FOLDERS.split(":"),
  });
  const { TaskService } = grpc.loadPackageDefinition(definition).taskservice.v1;
  const server = new grpc.Server();
  server.addService(TaskService.service, {
    GetTask: unary(async ({ id }) => taskOf((await run(GET, [id]))[0])),
    CreateTask: unary(async ({ task }) =>
      taskOf((await run(CREATE, [task.title, task.description, task.tags]))[0]),
    ),
    ListTasks: unary(async ({ page_size }) => ({ tasks: (await run(LIST, [page_size])).map(taskOf) })),
    GetTaskStats: unary(async () => statsOf(await run(STATS, []))),
  });
  const address = `127.0.0.1:${process.env.PORT}`;
  server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error) => {
    if (error) throw error;
  });
}

if (cluster.isPrimary) {
  for (let n = 0; n < Number(process.env.WORKERS); n++) cluster.fork();
} else {
  serve();
}
