{{- /* The base of all names: 40 characters leave room for what is appended. */}}
{{- define "task-service.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) }}
{{- default $name .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* The job in Prometheus: the rules take names that end in "task-service". */}}
{{- define "task-service.job" -}}
{{- $name := include "task-service.fullname" . }}
{{- $name = ternary $name (printf "%s-task-service" $name) (hasSuffix "task-service" $name) }}
{{- printf "%s/%s" .Release.Namespace $name }}
{{- end }}

{{- define "task-service.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "task-service.fullname" .) }}
{{- end }}

{{- define "task-service.migrationServiceAccount" -}}
{{- .Values.migration.serviceAccount.name | default (printf "%s-migrate" (include "task-service.fullname" .)) }}
{{- end }}

{{- /* What selects the pods of a component. It must never change: selectors are immutable.
       Arguments: the root context, the component. */}}
{{- define "task-service.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* Not the chart's version: a new one alone would replace all pods. Arguments: the root context, the component. */}}
{{- define "task-service.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "task-service.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | replace "+" "_" | quote }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Arguments: the root context, the component. */}}
{{- define "task-service.labels" -}}
{{- $root := index . 0 -}}
{{ include "task-service.podLabels" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Arguments: the root context, the image's values. */}}
{{- define "task-service.image" -}}
{{- $root := index . 0 }}
{{- with index . 1 }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $root.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A value that is a template. Arguments: the root context, the value. */}}
{{- define "task-service.tpl" -}}
{{- tpl (toYaml (index . 1)) (index . 0) }}
{{- end }}
