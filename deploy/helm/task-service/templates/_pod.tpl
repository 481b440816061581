{{- /* What the pods of all components have in common, but their containers.
       Arguments: the root context, the component, its values. */}}
{{- define "task-service.podMetadata" -}}
{{- $root := index . 0 }}
{{- $values := index . 2 -}}
labels:
  {{- include "task-service.podLabels" (list $root (index . 1)) | nindent 2 }}
  {{- with $values.podLabels }}
  {{- include "task-service.tpl" (list $root .) | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- include "task-service.tpl" (list $root .) | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Argument: the root context. Service links would set GRPC_PORT and others for some names of Services. */}}
{{- define "task-service.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- include "task-service.tpl" (list $ .) | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Arguments: the root context, the component. */}}
{{- define "task-service.topologySpread" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- with $root.Values.topologySpreadConstraints -}}
topologySpreadConstraints:
{{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "task-service.selector" (list $root $component) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{- /* The root file system is read-only: /tmp is all that can be written.
       Arguments: the root context, the component's values. */}}
{{- define "task-service.volumes" -}}
{{- $root := index . 0 -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with (index . 1).extraVolumes }}
{{ include "task-service.tpl" (list $root .) }}
{{- end }}
{{- end }}

{{- /* Arguments: the root context, the component's values. */}}
{{- define "task-service.volumeMounts" -}}
{{- $root := index . 0 -}}
- name: tmp
  mountPath: /tmp
{{- with (index . 1).extraVolumeMounts }}
{{ include "task-service.tpl" (list $root .) }}
{{- end }}
{{- end }}

{{- /* Seconds from the sleep of preStop to SIGKILL. The supervisor stops its workers 10 seconds after the grace. */}}
{{- define "task-service.drainSeconds" -}}
{{- $config := .Values.config }}
{{- add .Values.preStopSeconds (ceil $config.SHUTDOWN_DELAY_SECONDS) (ceil $config.SHUTDOWN_GRACE_SECONDS) 15 }}
{{- end }}

{{- /* A probe's action: the kubelet's own, or the command. Arguments: the root context, the health service. */}}
{{- define "task-service.probe" -}}
{{- $root := index . 0 }}
{{- $service := index . 1 }}
{{- with $root.Values.probes.command -}}
exec:
  command: {{ append . $service | toJson }}
{{- else -}}
grpc:
  port: {{ $root.Values.config.HEALTH_PORT }}
  service: {{ $service | quote }}
{{- end }}
periodSeconds: {{ $root.Values.probes.periodSeconds }}
timeoutSeconds: {{ $root.Values.probes.timeoutSeconds }}
{{- end }}

{{- /* Settings as text. Helm reads numbers as floats, and would print a million as 1e+06. Argument: the settings. */}}
{{- define "task-service.settings" -}}
{{- range $name, $value := . }}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
{{- $value = int64 $value }}
{{- end }}
{{- if ne (toString $value) "" }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Settings as variables of a container. Argument: the settings. */}}
{{- define "task-service.env" -}}
{{- range $name, $value := include "task-service.settings" . | fromYaml }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- /* Where the certificate is. Argument: the root context. */}}
{{- define "task-service.tlsSettings" -}}
{{- if .Values.tls.secretName }}
TLS_CERT_FILE: /etc/task-service/tls/tls.crt
TLS_KEY_FILE: /etc/task-service/tls/tls.key
{{- if .Values.tls.clientCA }}
TLS_CLIENT_CA_FILE: /etc/task-service/tls/ca.crt
{{- end }}
{{- end }}
{{- end }}
