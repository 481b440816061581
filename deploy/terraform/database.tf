resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = [for subnet in aws_subnet.database : subnet.id]
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL of ${var.name}"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "PostgreSQL from the nodes of the cluster"
  referenced_security_group_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

locals {
  major = split(".", var.database.engine_version)[0]

  parameters = {
    "rds.force_ssl"                       = "1"
    "max_connections"                     = tostring(var.database.max_connections)
    "shared_preload_libraries"            = "pg_stat_statements"
    "log_min_duration_statement"          = "1000"
    "log_lock_waits"                      = "1"
    "log_connections"                     = "1"
    "log_disconnections"                  = "1"
    "log_statement"                       = "ddl"
    "log_parameter_max_length"            = "0" # Parameters are the content of tasks.
    "log_parameter_max_length_on_error"   = "0"
    "idle_in_transaction_session_timeout" = "60000"
  }
  # PostgreSQL reads these at its start only.
  static = ["max_connections", "shared_preload_libraries"]
}

resource "aws_db_parameter_group" "this" {
  name_prefix = "${var.name}-"
  family      = "postgres${local.major}"

  dynamic "parameter" {
    for_each = local.parameters

    content {
      name         = parameter.key
      value        = parameter.value
      apply_method = contains(local.static, parameter.key) ? "pending-reboot" : "immediate"
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_133:backup_days is 7 to 35; checkov does not read the default of an optional attribute.
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.database.engine_version
  instance_class = var.database.instance_class

  # RDS makes the password, keeps it in Secrets Manager and rotates it. Only operators use this role:
  # deploy/database/roles.sql creates those of the service and of its migration.
  username                            = "administrator"
  manage_master_user_password         = true
  master_user_secret_kms_key_id       = aws_kms_key.this.arn
  iam_database_authentication_enabled = true

  multi_az               = true
  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.database.id]
  parameter_group_name   = aws_db_parameter_group.this.name
  ca_cert_identifier     = "rds-ca-rsa2048-g1"
  publicly_accessible    = false

  storage_type          = "gp3"
  allocated_storage     = var.database.storage_gib
  max_allocated_storage = var.database.storage_max_gib
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.this.arn

  # Any second of these days can be restored, into another instance.
  backup_retention_period   = var.database.backup_days
  backup_window             = var.database.backup_window
  copy_tags_to_snapshot     = true
  delete_automated_backups  = false
  deletion_protection       = true
  final_snapshot_identifier = "${var.name}-final"
  snapshot_identifier       = var.database.restore_snapshot

  maintenance_window          = var.database.maintenance
  auto_minor_version_upgrade  = true
  allow_major_version_upgrade = false

  performance_insights_enabled    = true
  performance_insights_kms_key_id = aws_kms_key.this.arn
  monitoring_interval             = 60
  monitoring_role_arn             = aws_iam_role.monitoring.arn
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]

  lifecycle {
    ignore_changes = [snapshot_identifier]

    precondition {
      condition     = local.connections <= var.database.max_connections
      error_message = "The pools of all pods may open ${local.connections} connections: raise database.max_connections, or lower service.maximum_pods."
    }
  }

  depends_on = [aws_cloudwatch_log_group.database]
}

resource "aws_cloudwatch_log_group" "database" {
  for_each = toset(["postgresql", "upgrade"])

  name              = "/aws/rds/instance/${var.name}/${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = aws_kms_key.this.arn
}

resource "aws_iam_role" "monitoring" {
  name               = "${var.name}-database-monitoring"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["monitoring.rds"].json
}

resource "aws_iam_role_policy_attachment" "monitoring" {
  role       = aws_iam_role.monitoring.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

# For operators, who log in with a token of 15 minutes instead of a password. The service cannot: its
# pool opens connections at any time with the password that it was started with.
resource "aws_iam_policy" "database_operator" {
  name        = "${var.name}-database-operator"
  description = "Log in to PostgreSQL as tasks_operator"
  policy      = data.aws_iam_policy_document.database_operator.json
}

data "aws_iam_policy_document" "database_operator" {
  statement {
    actions   = ["rds-db:connect"]
    resources = ["arn:${local.partition}:rds-db:${local.region}:${local.account}:dbuser:${aws_db_instance.this.resource_id}/tasks_operator"]
  }
}
