# Secrets in the form of environment variables. Their values are generated while Terraform runs and are
# written to Secrets Manager only: neither plan nor state has them. They are written again when their
# version increases, so that a rotation by hand stays.

ephemeral "random_password" "this" {
  for_each = local.secrets

  length  = 48
  special = false # Passwords are parts of URLs.
}

locals {
  # What has the keys, the service's login and the migration's.
  secrets = toset(["keys", "service", "migration"])

  database_urls = {
    for role in ["service", "migration"] : role => join("", [
      "postgresql://tasks_${role}:${ephemeral.random_password.this[role].result}",
      "@${aws_db_instance.this.endpoint}/tasks?sslmode=verify-full&sslrootcert=/etc/rds/ca.pem",
    ])
  }

  secret_values = {
    keys      = { SECRET_KEY = ephemeral.random_password.this["keys"].result }
    service   = { DATABASE_URL = local.database_urls["service"] }
    migration = { DATABASE_URL = local.database_urls["migration"] }
  }
}

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57:A rotation replaces the pods, in an order that docs/security.md gives: no timer can.
  for_each = local.secrets

  name                    = "${var.name}/${each.key}"
  description             = "Environment variables of ${var.name}"
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = 30
}

resource "aws_secretsmanager_secret_version" "this" {
  for_each = aws_secretsmanager_secret.this

  secret_id                = each.value.id
  secret_string_wo         = jsonencode(local.secret_values[each.key])
  secret_string_wo_version = var.secret_versions[each.key]
}
