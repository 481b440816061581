output "kubeconfig" {
  description = "The command that adds the cluster to kubectl's configuration."
  value       = "aws eks update-kubeconfig --region ${local.region} --name ${aws_eks_cluster.this.name}"
}

output "registries" {
  description = "The registries of the service, the gateway and the chart."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.repository_url }
}

output "database" {
  description = "The address of PostgreSQL, and the secret of its administrator, for deploy/database/roles.sql."
  value = {
    endpoint             = aws_db_instance.this.endpoint
    administrator_secret = aws_db_instance.this.master_user_secret[0].secret_arn
    operator_policy      = aws_iam_policy.database_operator.arn
  }
}

output "secrets" {
  description = "The secrets in Secrets Manager that External Secrets copies."
  value       = { for name, secret in aws_secretsmanager_secret.this : name => secret.name }
}

output "collector" {
  description = "Environment variables of the collector: collector.yaml names them."
  value = {
    AWS_REGION       = local.region
    METRICS_ENDPOINT = "${aws_prometheus_workspace.this.prometheus_endpoint}api/v1/remote_write"
  }
}

output "helm_values" {
  description = "Values of the chart in deploy/helm, to be given with its values-production.yaml."
  value       = yamlencode(local.helm_values)
}

locals {
  # The authority of RDS' certificates, from the ConfigMap that README.md makes.
  ca_volumes = [{ name = "rds-ca", configMap = { name = "rds-ca" } }]
  ca_mounts  = [{ name = "rds-ca", mountPath = "/etc/rds", readOnly = true }]

  secret_store = { kind = "ClusterSecretStore", name = "aws" }

  helm_values = {
    image = { repository = aws_ecr_repository.this["service"].repository_url }
    config = {
      WORKERS                = var.service.workers
      THREADS_PER_WORKER     = var.service.threads_per_worker
      OTEL_EXPORTER_ENDPOINT = "http://collector:4317"
    }
    autoscaling = {
      enabled     = true
      minReplicas = var.service.minimum_pods
      maxReplicas = var.service.maximum_pods
    }
    secrets = {
      externalSecret = {
        secretStoreRef = local.secret_store
        extract        = aws_secretsmanager_secret.this["keys"].name
        data = {
          DATABASE_URL = { key = aws_secretsmanager_secret.this["service"].name, property = "DATABASE_URL" }
        }
      }
    }
    extraVolumes      = local.ca_volumes
    extraVolumeMounts = local.ca_mounts
    migration = {
      secrets = {
        externalSecret = {
          secretStoreRef = local.secret_store
          extract        = aws_secretsmanager_secret.this["migration"].name
        }
      }
      extraVolumes      = local.ca_volumes
      extraVolumeMounts = local.ca_mounts
    }
    # Rules and scrapes are of telemetry.tf and collector.yaml, in the same namespace, not of an operator.
    serviceMonitor = { enabled = false }
    prometheusRule = { enabled = false }
    networkPolicy  = { metricsFrom = [{ podSelector = {} }] }
    gateway = {
      image = { repository = aws_ecr_repository.this["gateway"].repository_url }
    }
  }
}
