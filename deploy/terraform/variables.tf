variable "name" {
  description = "The name of the installation: the prefix of everything that is created."
  type        = string
  default     = "task-service"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,24}$", var.name))
    error_message = "Use 3 to 25 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "namespace" {
  description = "The Kubernetes namespace that the chart is installed in."
  type        = string
  default     = "task-service"
}

# --- The network --------------------------------------------------------------------------------

variable "vpc_cidr" {
  description = "The addresses of the VPC: a /16 of a private range."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && endswith(var.vpc_cidr, "/16")
    error_message = "Give a /16 in CIDR notation."
  }
}

variable "zones" {
  description = "The three availability zones, by name."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) == 3 && length(var.zones) == 3
    error_message = "Give three different zones."
  }
}

variable "nat_gateways" {
  description = "per_zone: one NAT gateway in each zone. single: one for all, cheaper, and lost with its zone."
  type        = string
  default     = "per_zone"

  validation {
    condition     = contains(["per_zone", "single"], var.nat_gateways)
    error_message = "Use per_zone or single."
  }
}

# --- The cluster --------------------------------------------------------------------------------

variable "kubernetes_version" {
  description = "The Kubernetes version of EKS; one in standard support."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "Give a minor version, such as 1.35."
  }
}

variable "public_access_cidrs" {
  description = "Addresses that reach the Kubernetes API from the internet. None: only from within the VPC."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && cidr != "0.0.0.0/0"])
    error_message = "Give CIDR ranges, and never the whole internet."
  }
}

variable "administrators" {
  description = "ARNs of IAM roles that administer the cluster."
  type        = set(string)

  validation {
    condition     = length(var.administrators) > 0
    error_message = "Without an administrator the cluster cannot be used."
  }
}

variable "nodes" {
  description = "The managed nodes: instance types of one architecture, and how many of them."
  type = object({
    instance_types = optional(list(string), ["m7g.large"])
    ami_type       = optional(string, "AL2023_ARM_64_STANDARD")
    minimum        = optional(number, 3)
    maximum        = optional(number, 9)
    disk_gib       = optional(number, 30)
  })
  default = {}

  validation {
    condition     = var.nodes.minimum >= 3 && var.nodes.maximum >= var.nodes.minimum
    error_message = "Three zones need at least three nodes, and the maximum is not below the minimum."
  }
}

# --- The service --------------------------------------------------------------------------------

variable "service" {
  description = "What the connections of the database are computed from: pods, and WORKERS and THREADS_PER_WORKER of each."
  type = object({
    minimum_pods       = optional(number, 3)
    maximum_pods       = optional(number, 12)
    workers            = optional(number, 2)
    threads_per_worker = optional(number, 4)
  })
  default = {}

  validation {
    condition     = var.service.minimum_pods >= 2 && var.service.maximum_pods >= var.service.minimum_pods
    error_message = "Two pods are the least without an outage, and the maximum is not below the minimum."
  }
}

variable "secret_versions" {
  description = "Increase a number to generate that secret anew; README.md says what else a rotation needs."
  type = object({
    keys      = optional(number, 1)
    service   = optional(number, 1)
    migration = optional(number, 1)
  })
  default = {}
}

# --- The database -------------------------------------------------------------------------------

variable "database" {
  description = "The RDS instance. max_connections must hold the pools of all pods; restore_snapshot counts only when the instance is made."
  type = object({
    engine_version   = optional(string, "18")
    instance_class   = optional(string, "db.m7g.large")
    storage_gib      = optional(number, 100)
    storage_max_gib  = optional(number, 1000)
    max_connections  = optional(number, 800)
    backup_days      = optional(number, 14)
    backup_window    = optional(string, "02:00-03:00")
    maintenance      = optional(string, "sun:03:30-sun:04:30")
    restore_snapshot = optional(string)
  })
  default = {}

  validation {
    condition     = can(regex("^1[5-9]", var.database.engine_version))
    error_message = "The service needs PostgreSQL 15 or newer."
  }

  validation {
    condition     = var.database.backup_days >= 7 && var.database.backup_days <= 35
    error_message = "RDS keeps backups for at most 35 days; keep them for at least 7."
  }
}

# --- Alarms and logs ----------------------------------------------------------------------------

variable "alarm_emails" {
  description = "Addresses that get alarms by mail; each has to confirm its subscription."
  type        = set(string)
  default     = []
}

variable "log_retention_days" {
  description = "How long CloudWatch keeps logs of the control plane, the network and the database."
  type        = number
  default     = 365
}
