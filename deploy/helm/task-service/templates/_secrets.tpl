{{- /* The name of the Secret with a component's secret settings, empty if there is none.
       Arguments: the root context, the values of `secrets`, the name's end. */}}
{{- define "task-service.secretName" -}}
{{- $root := index . 0 }}
{{- $end := index . 2 }}
{{- with index . 1 }}
{{- if .existingSecret }}
{{- .existingSecret }}
{{- else if or .values .externalSecret.secretStoreRef }}
{{- printf "%s%s" (include "task-service.fullname" $root) $end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* That Secret, or the ExternalSecret that makes it; nothing if it exists.
       Arguments: the root context, the values of `secrets`, the name's end, the component, annotations. */}}
{{- define "task-service.secret" -}}
{{- $root := index . 0 }}
{{- $name := include "task-service.secretName" . }}
{{- with index . 1 }}
{{- if .values -}}
apiVersion: v1
kind: Secret
metadata:
  {{- include "task-service.secretMetadata" $ | nindent 2 }}
type: Opaque
stringData:
  {{- range $key, $value := .values }}
  {{ $key }}: {{ $value | toString | quote }}
  {{- end }}
{{- else if .externalSecret.secretStoreRef -}}
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata:
  {{- include "task-service.secretMetadata" $ | nindent 2 }}
spec:
  secretStoreRef:
    {{- toYaml .externalSecret.secretStoreRef | nindent 4 }}
  refreshInterval: {{ .externalSecret.refreshInterval }}
  target:
    name: {{ $name }}
    creationPolicy: Owner
  {{- with .externalSecret.extract }}
  dataFrom:
    - extract: {key: {{ . | quote }}}
  {{- end }}
  {{- with .externalSecret.data }}
  data:
    {{- range $key, $reference := . }}
    - secretKey: {{ $key }}
      remoteRef:
        {{- toYaml $reference | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Arguments: those of the Secret. */}}
{{- define "task-service.secretMetadata" -}}
name: {{ include "task-service.secretName" . }}
labels:
  {{- include "task-service.labels" (list (index . 0) (index . 3)) | nindent 2 }}
{{- with index . 4 }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
