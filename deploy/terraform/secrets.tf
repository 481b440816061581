# Secrets of the service and of its migration, in the form of environment variables. Their values are
# generated while Terraform runs and are written to Secrets Manager only: neither plan nor state has them.

ephemeral "random_password" "this" {
  for_each = toset(["secret_key", "service", "migration"])

  length  = 48
  special = false # They are parts of URLs.
}

locals {
  database_url = {
    for role in ["service", "migration"] : role => join("", [
      "postgresql://tasks_${role}:${ephemeral.random_password.this[role].result}",
      "@${aws_db_instance.this.endpoint}/tasks?sslmode=verify-full&sslrootcert=/etc/rds/ca.pem",
    ])
  }

  secrets = {
    service = {
      SECRET_KEY   = ephemeral.random_password.this["secret_key"].result
      DATABASE_URL = local.database_url["service"]
    }
    migration = {
      DATABASE_URL = local.database_url["migration"]
    }
  }
}

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57:A rotation replaces the pods, in an order that docs/security.md gives: no timer can.
  for_each = toset(["service", "migration"])

  name                    = "${var.name}/${each.key}"
  description             = "Environment variables of the ${each.key}"
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = 30
}

resource "aws_secretsmanager_secret_version" "this" {
  for_each = aws_secretsmanager_secret.this

  secret_id                = each.value.id
  secret_string_wo         = jsonencode(local.secrets[each.key])
  secret_string_wo_version = var.secret_version
}
