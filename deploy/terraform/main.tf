# Task Service on AWS: a network in three zones, RDS PostgreSQL, EKS, registries, secrets, telemetry and
# alarms. The service itself is installed by the Helm chart, with the output `helm_values`.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  account   = data.aws_caller_identity.this.account_id
  partition = data.aws_partition.this.partition
  region    = data.aws_region.this.region

  # A worker's pool is THREADS_PER_WORKER connections and 9 for the service itself, and opens up to 10
  # more; the last term is what RDS, monitoring and operators use (docs/configuration.md).
  connections_per_pod = var.service.workers * (var.service.threads_per_worker + 20)
  connections         = var.service.maximum_pods * local.connections_per_pod + 30
}
