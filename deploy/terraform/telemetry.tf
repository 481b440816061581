# Metrics go to Amazon Managed Service for Prometheus, with the same rules as everywhere else; traces go
# to X-Ray. collector.yaml has the collector that writes both.

resource "aws_prometheus_workspace" "this" {
  alias       = var.name
  kms_key_arn = aws_kms_key.this.arn

  logging_configuration {
    log_group_arn = "${aws_cloudwatch_log_group.prometheus.arn}:*"
  }
}

resource "aws_cloudwatch_log_group" "prometheus" {
  name              = "/aws/vendedlogs/prometheus/${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = aws_kms_key.this.arn
}

# slo: failed and slow calls against the objectives. causes: what they may come from.
resource "aws_prometheus_rule_group_namespace" "this" {
  for_each = toset(["slo", "causes"])

  name         = each.key
  workspace_id = aws_prometheus_workspace.this.id
  data         = file("${path.module}/../observability/rules/${each.key}.yml")
}

resource "aws_prometheus_alert_manager_definition" "this" {
  workspace_id = aws_prometheus_workspace.this.id
  definition = yamlencode({
    alertmanager_config = yamlencode({
      route = {
        receiver        = "alarms"
        group_by        = ["alertname"]
        group_wait      = "30s"
        repeat_interval = "4h"
      }
      receivers = [{
        name = "alarms"
        sns_configs = [{
          topic_arn     = aws_sns_topic.alarms.arn
          send_resolved = true
          sigv4         = { region = local.region }
        }]
      }]
    })
  })
}
