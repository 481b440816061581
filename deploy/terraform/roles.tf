# Who may assume the roles of this module: services of AWS, and pods by EKS Pod Identity.

locals {
  services = toset(["ec2", "eks", "monitoring.rds", "pods.eks", "vpc-flow-logs"])
}

data "aws_iam_policy_document" "assumed_by" {
  for_each = local.services

  statement {
    actions = each.key == "pods.eks" ? ["sts:AssumeRole", "sts:TagSession"] : ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
  }
}

# --- The cluster --------------------------------------------------------------------------------

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["eks"].json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

resource "aws_iam_role" "nodes" {
  name               = "${var.name}-nodes"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["ec2"].json
}

resource "aws_iam_role_policy_attachment" "nodes" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonEKS_CNI_Policy"])

  role       = aws_iam_role.nodes.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

# --- Pods ---------------------------------------------------------------------------------------

# The service and its migration call no service of AWS and have no role. External Secrets copies their
# secrets into the namespace; the collector writes traces and metrics.
locals {
  pods = {
    external-secrets = { namespace = "external-secrets", policy = data.aws_iam_policy_document.secrets.json }
    collector        = { namespace = var.namespace, policy = data.aws_iam_policy_document.telemetry.json }
  }
}

resource "aws_iam_role" "pods" {
  for_each = local.pods

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assumed_by["pods.eks"].json
}

resource "aws_iam_role_policy" "pods" {
  for_each = local.pods

  name   = each.key
  role   = aws_iam_role.pods[each.key].id
  policy = each.value.policy
}

resource "aws_eks_pod_identity_association" "pods" {
  for_each = local.pods

  cluster_name    = aws_eks_cluster.this.name
  namespace       = each.value.namespace
  service_account = each.key
  role_arn        = aws_iam_role.pods[each.key].arn
}

data "aws_iam_policy_document" "secrets" {
  statement {
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
    resources = [for secret in aws_secretsmanager_secret.this : secret.arn]
  }

  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]
  }
}

data "aws_iam_policy_document" "telemetry" {
  #checkov:skip=CKV_AWS_111:X-Ray's actions of writing have no resource that a policy could name.
  #checkov:skip=CKV_AWS_356:As above.
  statement {
    actions   = ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]
    resources = ["*"]
  }

  statement {
    actions   = ["aps:RemoteWrite"]
    resources = [aws_prometheus_workspace.this.arn]
  }
}
