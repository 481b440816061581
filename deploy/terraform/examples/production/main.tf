terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }

  # The bucket is given by `terraform init -backend-config=bucket=…`: it exists before everything else,
  # with versions and without public access.
  backend "s3" {
    key          = "task-service/production.tfstate"
    region       = "eu-central-1"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = "eu-central-1"

  default_tags {
    tags = { application = "task-service", environment = "production" }
  }
}

variable "administrators" {
  description = "ARNs of IAM roles that administer the cluster."
  type        = set(string)
}

variable "alarm_emails" {
  description = "Addresses that get alarms by mail."
  type        = set(string)
}

module "task_service" {
  source = "../.."

  zones          = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  administrators = var.administrators
  alarm_emails   = var.alarm_emails
}

output "task_service" {
  description = "Everything that the next steps of the README need."
  value       = module.task_service
}
