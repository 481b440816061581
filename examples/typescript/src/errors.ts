import type { ServiceError } from "@grpc/grpc-js";
import { BadRequest, type BadRequest_FieldViolation, ErrorInfo } from "../gen/google/rpc/error_details.js";
import { Status } from "../gen/google/rpc/status.js";

/** Tells an error of a call from others. */
export function isOfCall(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}

/** Returns the reason in ErrorInfo, or "" for an error of gRPC itself. Reasons are stable, messages are not. */
export function reason(error: unknown): string {
  const info = detail(error, "google.rpc.ErrorInfo");
  return info ? ErrorInfo.decode(info).reason : "";
}

/** Returns all violations of a request. */
export function violations(error: unknown): BadRequest_FieldViolation[] {
  const request = detail(error, "google.rpc.BadRequest");
  return request ? BadRequest.decode(request).fieldViolations : [];
}

function detail(error: unknown, type: string): Uint8Array | undefined {
  const [bytes] = isOfCall(error) ? error.metadata.get("grpc-status-details-bin") : [];
  if (!(bytes instanceof Uint8Array)) return undefined;
  return Status.decode(bytes).details.find(({ typeUrl }) => typeUrl.endsWith(`/${type}`))?.value;
}
