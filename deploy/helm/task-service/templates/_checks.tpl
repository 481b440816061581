{{- /* What the schema of the values cannot say. All mistakes are reported at once. */}}
{{- define "task-service.checks" -}}
{{- $mistakes := concat
  (include "task-service.imageMistakes" . | fromJsonArray)
  (include "task-service.settingMistakes" . | fromJsonArray)
  (include "task-service.secretMistakes" . | fromJsonArray)
  (include "task-service.durationMistakes" . | fromJsonArray)
}}
{{- if $mistakes }}
{{- fail (printf "\n\n- %s\n" (join "\n- " $mistakes)) }}
{{- end }}
{{- end }}

{{- define "task-service.imageMistakes" -}}
{{- $mistakes := list }}
{{- if not .Values.image.repository }}
{{- $mistakes = append $mistakes "image.repository: must be set, e.g. to registry.example.com/task-service" }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.image.repository) }}
{{- $mistakes = append $mistakes "gateway.image.repository: must be set with gateway.enabled" }}
{{- end }}
{{- toJson $mistakes }}
{{- end }}

{{- define "task-service.settingMistakes" -}}
{{- $config := .Values.config }}
{{- $mistakes := list }}
{{- if and (ne $config.ENVIRONMENT "development") (not $config.AUTH_MODE) }}
{{- $mistakes = append $mistakes (printf "config.AUTH_MODE: must be set in %s: jwt, mtls or none" $config.ENVIRONMENT) }}
{{- end }}
{{- if and (eq $config.ENVIRONMENT "production") (not .Values.tls.secretName) (ne (toString $config.TLS_TERMINATED_UPSTREAM) "true") }}
{{- $mistakes = append $mistakes "tls.secretName: must be set in production, or config.TLS_TERMINATED_UPSTREAM: true" }}
{{- end }}
{{- if and (eq ($config.AUTH_MODE | default "") "mtls") (not (and .Values.tls.secretName .Values.tls.clientCA)) }}
{{- $mistakes = append $mistakes "config.AUTH_MODE: mtls needs tls.secretName and tls.clientCA" }}
{{- end }}
{{- if and (not $config.HEALTH_PORT) (not .Values.probes.command) }}
{{- $mistakes = append $mistakes "config.HEALTH_PORT: must be set, or probes.command" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not $config.METRICS_PORT) }}
{{- $mistakes = append $mistakes "config.METRICS_PORT: must be set with serviceMonitor.enabled" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (int .Values.autoscaling.targetCPU)) (not (int .Values.autoscaling.targetCalls)) }}
{{- $mistakes = append $mistakes "autoscaling: targetCPU or targetCalls must be set" }}
{{- end }}
{{- if and .Values.gateway.enabled .Values.tls.clientCA }}
{{- $mistakes = append $mistakes "tls.clientCA: clients of the gateway cannot show certificates" }}
{{- end }}
{{- range $key, $route := dict "grpcRoute" .Values.grpcRoute "gateway.httpRoute" .Values.gateway.httpRoute }}
{{- if and $route.enabled (not $route.parentRefs) }}
{{- $mistakes = append $mistakes (printf "%s.parentRefs: must name a Gateway" $key) }}
{{- end }}
{{- end }}
{{- toJson $mistakes }}
{{- end }}

{{- define "task-service.secretMistakes" -}}
{{- $mistakes := list }}
{{- $sources := dict "secrets" .Values.secrets }}
{{- if ne .Values.migration.mode "none" }}
{{- $sources = set $sources "migration.secrets" .Values.migration.secrets }}
{{- end }}
{{- range $key, $source := $sources }}
{{- $external := $source.externalSecret }}
{{- $given := compact (list $source.existingSecret $external.secretStoreRef.name (keys $source.values | join " ")) }}
{{- if ne (len $given) 1 }}
{{- $mistakes = append $mistakes (printf "%s: set exactly one of existingSecret, externalSecret.secretStoreRef and values" $key) }}
{{- end }}
{{- if and $external.secretStoreRef (not $external.extract) (not $external.data) }}
{{- $mistakes = append $mistakes (printf "%s.externalSecret: extract or data must be set" $key) }}
{{- end }}
{{- with $source.values }}
{{- if not (or .DATABASE_URL .DATABASE_DIRECT_URL $.Values.config.DB_HOST) }}
{{- $mistakes = append $mistakes (printf "%s.values.DATABASE_URL: must be set, or config.DB_HOST" $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.secrets.values }}
{{- if lt (len (.SECRET_KEY | default "")) 32 }}
{{- $mistakes = append $mistakes "secrets.values.SECRET_KEY: must have 32 characters or more" }}
{{- end }}
{{- end }}
{{- toJson $mistakes }}
{{- end }}

{{- define "task-service.durationMistakes" -}}
{{- $mistakes := list }}
{{- $drain := include "task-service.drainSeconds" . | int }}
{{- with .Values.terminationGracePeriodSeconds }}
{{- if lt (int .) $drain }}
{{- $mistakes = append $mistakes (printf "terminationGracePeriodSeconds: must be %d or more, as the drain takes" $drain) }}
{{- end }}
{{- end }}
{{- if and (ne .Values.migration.mode "none") (lt (int .Values.probes.startupSeconds) (int .Values.migration.activeDeadlineSeconds)) }}
{{- $mistakes = append $mistakes "probes.startupSeconds: must not be less than migration.activeDeadlineSeconds, as pods wait for the schema" }}
{{- end }}
{{- toJson $mistakes }}
{{- end }}
