import { readFileSync } from "node:fs";
import {
  type CallOptions,
  ChannelCredentials,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import { TaskServiceClient } from "../gen/taskservice/v1/task_service.js";

const { TASKS_ADDRESS, TASKS_CA, TASKS_SERVICE_CONFIG, TASKS_TOKEN_FILE } = process.env;

/** Returns a client of the service. With the service config, gRPC retries calls, sets deadlines, and balances. */
export function connect(): TaskServiceClient {
  return new TaskServiceClient(`dns:///${TASKS_ADDRESS ?? "127.0.0.1:50051"}`, security(), {
    "grpc.service_config": readFileSync(TASKS_SERVICE_CONFIG ?? "gen/service_config.json", "utf8"),
    // A lost connection is detected within half a minute.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
  });
}

/** Returns credentials: TLS, if TASKS_CA names a file of certificates, with the token in the file TASKS_TOKEN_FILE. */
function security(): ChannelCredentials {
  if (!TASKS_CA) {
    if (TASKS_TOKEN_FILE) throw new Error("a token needs TLS: set TASKS_CA");
    return credentials.createInsecure();
  }
  const tls = credentials.createSsl(readFileSync(TASKS_CA));
  return TASKS_TOKEN_FILE ? credentials.combineChannelCredentials(tls, token(TASKS_TOKEN_FILE)) : tls;
}

/** Each call reads the file, so that a new token needs no restart. */
function token(file: string) {
  return credentials.createFromMetadataGenerator((_, callback) => {
    const metadata = new Metadata();
    metadata.set("authorization", `Bearer ${readFileSync(file, "utf8").trim()}`);
    callback(null, metadata);
  });
}

/** A call waits for a connection until its deadline. The service config says so too, but grpc-js ignores that. */
export const waiting = new Metadata({ waitForReady: true });

type Method<Q, A> = (
  request: Q,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: A) => void,
) => unknown;

/** Calls a method. Its deadline is the earlier of this one and the service config's. */
export function call<Q, A>(client: TaskServiceClient, method: Method<Q, A>, request: Q): Promise<A> {
  const deadline = Date.now() + 5_000;
  return new Promise((resolve, reject) => {
    method.call(client, request, waiting, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}
