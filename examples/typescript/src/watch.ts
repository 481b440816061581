import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import {
  type TaskServiceClient,
  WatchTasksRequest,
  type WatchTasksResponse,
  WatchTasksResponse_Type,
} from "../gen/taskservice/v1/task_service.js";
import { waiting } from "./connect.js";
import { isOfCall, reason, violations } from "./errors.js";

const LONGEST_PAUSE_MS = 10_000;
const TEMPORARY = [
  status.UNAVAILABLE,
  status.CANCELLED,
  status.ABORTED,
  status.DEADLINE_EXCEEDED,
  status.RESOURCE_EXHAUSTED,
];

/**
 * Prints each change, beginning with the tasks that match. The file has the token of the last change, with which the
 * watch resumes after an interruption of the service or of this program.
 */
export async function watch(client: TaskServiceClient, file: string, filter: string): Promise<void> {
  for (let pause = 100; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    const resumeToken = existsSync(file) ? readFileSync(file, "utf8") : "";
    const request = WatchTasksRequest.fromPartial({ filter, resumeToken, sendInitialTasks: !resumeToken });
    try {
      for await (const change of client.watchTasks(request, waiting)) {
        pause = 100;
        show(change);
        keep(file, change.resumeToken);
      }
    } catch (error) {
      if (resumeToken && isTokenRefused(error)) rmSync(file); // Begin anew, with the tasks as they are.
      else if (!isTemporary(error)) throw error;
    }
    await setTimeout(Math.random() * pause);
  }
}

function show({ type, task }: WatchTasksResponse): void {
  if (task) console.log(WatchTasksResponse_Type[type].replace("TYPE_", ""), task.title);
}

/** Replaces the file atomically. The initial tasks have no token: they are sent again as a whole. */
function keep(file: string, token: string): void {
  if (!token) return;
  writeFileSync(`${file}.new`, token, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** Tells whether the token is too old, or of another watch or key. */
function isTokenRefused(error: unknown): boolean {
  const isInvalid = violations(error).some(({ field }) => field === "resume_token");
  return isInvalid || (isOfCall(error) && error.code === status.OUT_OF_RANGE);
}

/** Tells whether a watch that ended with this error can be resumed. */
function isTemporary(error: unknown): boolean {
  return isOfCall(error) && (TEMPORARY.includes(error.code) || reason(error) === "CREDENTIALS_EXPIRED");
}
