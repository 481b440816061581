/** Shows how a client of Task Service writes, lists, tells errors apart and watches. */
import { randomUUID } from "node:crypto";
import { type Task, TaskPriority, TaskStatus } from "../gen/taskservice/v1/task.js";
import {
  CreateTaskRequest,
  ListTasksRequest,
  type TaskServiceClient,
  UpdateTaskRequest,
} from "../gen/taskservice/v1/task_service.js";
import { call, connect } from "./connect.js";
import { reason, violations } from "./errors.js";
import { watch } from "./watch.js";

const USAGE = `usage:
  tasks tour                        write a task, and meet two errors
  tasks create COUNT TITLE          create tasks, each exactly once
  tasks list [FILTER]               list all tasks, page by page
  tasks watch TOKEN_FILE [FILTER]   follow changes, across restarts`;

type Fields = Partial<Task>;

/** Creates a task, completes it although another client writes it, and shows what errors tell. */
async function tour(client: TaskServiceClient): Promise<void> {
  const created = await createTask(client, {
    title: "Send the invoices",
    priority: TaskPriority.TASK_PRIORITY_HIGH,
    tags: ["billing"],
  });
  console.log("created:", created.title);

  const renamed = await update(client, { id: created.id, title: "Send all invoices" });
  console.log("renamed:", renamed.title);

  const status = TaskStatus.TASK_STATUS_COMPLETED;
  const refused = await update(client, { id: created.id, etag: created.etag, status }).catch(reason);
  console.log("refused:", refused);

  const completed = await complete(client, created.id);
  console.log("completed:", completed.title);

  for (const { field, description } of await createTask(client, { title: " " }).then(() => [], violations)) {
    console.log("invalid:", field, description);
  }
}

/** Creates a task exactly once: the request id makes it safe for gRPC to retry the call. */
function createTask(client: TaskServiceClient, task: Fields): Promise<Task> {
  const request = CreateTaskRequest.fromPartial({ task, requestId: randomUUID() });
  return call(client, client.createTask, request);
}

/** Writes the fields that the task has. If it has an etag, the service refuses to overwrite a newer task. */
function update(client: TaskServiceClient, task: Fields): Promise<Task> {
  const request = UpdateTaskRequest.fromPartial({ task, requestId: randomUUID() });
  return call(client, client.updateTask, request);
}

/** Reads and writes a task until no other client has written it in between. */
async function complete(client: TaskServiceClient, id: string): Promise<Task> {
  for (;;) {
    const task = await call(client, client.getTask, { id });
    try {
      return await update(client, { ...task, status: TaskStatus.TASK_STATUS_COMPLETED });
    } catch (error) {
      if (reason(error) !== "ETAG_MISMATCH") throw error;
    }
  }
}

async function create(client: TaskServiceClient, count: number, title: string): Promise<void> {
  for (let i = 1; i <= count; i++) await createTask(client, { title: `${title} ${i}` });
}

/** Prints every task that matches the filter. A page has at most 1000 tasks. */
async function list(client: TaskServiceClient, filter: string): Promise<void> {
  const request = ListTasksRequest.fromPartial({ filter, pageSize: 100 });
  do {
    const page = await call(client, client.listTasks, request);
    for (const { status, title } of page.tasks) console.log(TaskStatus[status].replace("TASK_STATUS_", ""), title);
    request.pageToken = page.nextPageToken;
  } while (request.pageToken);
}

async function run([command, ...words]: string[]): Promise<void> {
  const client = connect();
  try {
    switch (command) {
      case "tour":
        return await tour(client);
      case "create":
        return await create(client, Number(words[0]), words[1]);
      case "list":
        return await list(client, words[0] ?? "");
      case "watch":
        return await watch(client, words[0], words[1] ?? "");
    }
    throw new Error(USAGE);
  } finally {
    client.close();
  }
}

run(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
