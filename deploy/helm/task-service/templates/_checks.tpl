{{- /* What the schema of the values cannot say. All mistakes are reported at once. */}}
{{- define "task-service.checks" -}}
{{- $mistakes := printf "%s%s%s"
  (include "task-service.mistakesOf.settings" .)
  (include "task-service.mistakesOf.secrets" .)
  (include "task-service.mistakesOf.parts" .)
}}
{{- if $mistakes }}
{{- fail (printf "\n%s\n" $mistakes) }}
{{- end }}
{{- end }}

{{- define "task-service.mistakesOf.settings" }}
{{- $config := .Values.config }}
{{- if and (ne $config.ENVIRONMENT "development") (not $config.AUTH_MODE) }}
- config.AUTH_MODE: must be set in {{ $config.ENVIRONMENT }}, to jwt, mtls or none
{{- end }}
{{- if and (eq $config.ENVIRONMENT "production") (not .Values.tls.secretName) (not $config.TLS_TERMINATED_UPSTREAM) }}
- tls.secretName: must be set in production, or config.TLS_TERMINATED_UPSTREAM to true
{{- end }}
{{- if and (eq (toString $config.AUTH_MODE) "mtls") (not (and .Values.tls.secretName .Values.tls.clientCA)) }}
- config.AUTH_MODE: mtls needs tls.secretName and tls.clientCA
{{- end }}
{{- if not (or $config.HEALTH_PORT .Values.probes.command) }}
- config.HEALTH_PORT: must be set, or probes.command
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not $config.METRICS_PORT) }}
- config.METRICS_PORT: must be set with serviceMonitor.enabled
{{- end }}
{{- $drain := include "task-service.drainSeconds" . | int }}
{{- if lt (int (default $drain .Values.terminationGracePeriodSeconds)) $drain }}
- terminationGracePeriodSeconds: must be {{ $drain }} or more, as the drain takes
{{- end }}
{{- end }}

{{- define "task-service.mistakesOf.secrets" }}
{{- $needed := dict "secrets" .Values }}
{{- if ne .Values.migration.mode "none" }}
{{- $needed = set $needed "migration.secrets" .Values.migration }}
{{- end }}
{{- range $name, $values := $needed }}
{{- $source := $values.secrets }}
{{- $external := $source.externalSecret }}
{{- $given := compact (list $source.existingSecret $external.secretStoreRef.name (keys $source.values | join " ")) }}
{{- if and (not $given) (not $values.extraEnv) (not $values.extraEnvFrom) }}
- {{ $name }}: the database's URL{{ if eq $name "secrets" }} and SECRET_KEY{{ end }} must be given by existingSecret, externalSecret or values (or by extraEnv)
{{- end }}
{{- if gt (len $given) 1 }}
- {{ $name }}: only one of existingSecret, externalSecret and values may be set
{{- end }}
{{- if and $external.secretStoreRef (not (or $external.extract $external.data)) }}
- {{ $name }}.externalSecret: extract or data must be set
{{- end }}
{{- with $source.values }}
{{- if not (or .DATABASE_URL .DATABASE_DIRECT_URL $.Values.config.DB_HOST) }}
- {{ $name }}.values.DATABASE_URL: must be set, or config.DB_HOST
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.secrets.values }}
{{- if lt (len (toString .SECRET_KEY)) 32 }}
- secrets.values.SECRET_KEY: must have 32 characters or more
{{- end }}
{{- end }}
{{- end }}

{{- define "task-service.mistakesOf.parts" }}
{{- if not .Values.image.repository }}
- image.repository: must be set, e.g. to registry.example.com/task-service
{{- end }}
{{- if lt (int .Values.probes.startupSeconds) (int .Values.migration.activeDeadlineSeconds) }}
- probes.startupSeconds: must not be less than migration.activeDeadlineSeconds, as pods wait for the schema
{{- end }}
{{- with .Values.autoscaling }}
{{- if and .enabled (not (int .targetCPU)) (not (int .targetCalls)) }}
- autoscaling: targetCPU or targetCalls must be set
{{- end }}
{{- end }}
{{- with .Values.gateway }}
{{- if and .enabled (not .image.repository) }}
- gateway.image.repository: must be set, e.g. to registry.example.com/task-service-gateway
{{- end }}
{{- if and .enabled $.Values.tls.clientCA }}
- tls.clientCA: clients of the gateway cannot show certificates
{{- end }}
{{- end }}
{{- range $name, $route := dict "grpcRoute" .Values.grpcRoute "gateway.httpRoute" .Values.gateway.httpRoute }}
{{- if and $route.enabled (not $route.parentRefs) }}
- {{ $name }}.parentRefs: must name a Gateway
{{- end }}
{{- end }}
{{- end }}
