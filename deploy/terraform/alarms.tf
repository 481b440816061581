# Alarms of the database. Alerts of the service come from the rules in telemetry.tf; all go to one topic.
# The service reads no replica, so there is no alarm of a replica's lag.

locals {
  gib = 1024 * 1024 * 1024

  # metric: [statistic, comparison, threshold, minutes, what it means]
  database_alarms = {
    CPUUtilization            = ["Average", "GreaterThanThreshold", 80, 15, "calls become slow; docs/scaling.md"]
    DatabaseConnections       = ["Maximum", "GreaterThanThreshold", 0.8 * var.database.max_connections, 5, "new connections will soon be refused"]
    FreeStorageSpace          = ["Minimum", "LessThanThreshold", 0.1 * var.database.storage_gib * local.gib, 5, "the storage grows by itself up to storage_max_gib; then writes fail"]
    FreeableMemory            = ["Average", "LessThanThreshold", 0.25 * local.gib, 15, "the instance class is too small"]
    DiskQueueDepth            = ["Average", "GreaterThanThreshold", 20, 15, "the storage has too few IOPS"]
    MaximumUsedTransactionIDs = ["Maximum", "GreaterThanThreshold", 1000000000, 60, "vacuum does not keep up: look for old transactions"]
  }
}

resource "aws_cloudwatch_metric_alarm" "database" {
  for_each = local.database_alarms

  alarm_name          = "${var.name}-database-${each.key}"
  alarm_description   = each.value[4]
  namespace           = "AWS/RDS"
  metric_name         = each.key
  dimensions          = { DBInstanceIdentifier = aws_db_instance.this.identifier }
  statistic           = each.value[0]
  comparison_operator = each.value[1]
  threshold           = each.value[2]
  period              = 300
  evaluation_periods  = each.value[3] / 5
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}

resource "aws_db_event_subscription" "this" {
  name             = var.name
  sns_topic        = aws_sns_topic.alarms.arn
  source_type      = "db-instance"
  source_ids       = [aws_db_instance.this.identifier]
  event_categories = ["availability", "failover", "failure", "low storage", "maintenance", "recovery"]
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = aws_kms_key.this.arn
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.alarm_emails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_sns_topic_policy" "alarms" {
  arn    = aws_sns_topic.alarms.arn
  policy = data.aws_iam_policy_document.alarms.json
}

data "aws_iam_policy_document" "alarms" {
  statement {
    actions   = ["sns:Publish", "sns:GetTopicAttributes"]
    resources = [aws_sns_topic.alarms.arn]

    principals {
      type        = "Service"
      identifiers = local.publishers
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}
