{{- /* Arguments: the root context, the Ingress' values, the component, the Service, its port. */}}
{{- define "task-service.ingress" -}}
{{- $root := index . 0 }}
{{- $component := index . 2 }}
{{- $service := index . 3 }}
{{- $port := index . 4 }}
{{- with index . 1 }}
{{- if .enabled -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ $service }}
  labels:
    {{- include "task-service.labels" (list $root $component) | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- include "task-service.tpl" (list $root .) | nindent 4 }}
  {{- end }}
spec:
  {{- with .className }}
  ingressClassName: {{ . }}
  {{- end }}
  tls:
    - hosts: [{{ .host }}]
      {{- with .tlsSecretName }}
      secretName: {{ . }}
      {{- end }}
  rules:
    - host: {{ .host }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend: {service: {name: {{ $service }}, port: {name: {{ $port }}}}}
{{- end }}
{{- end }}
{{- end }}

{{- /* Arguments: the root context, the route's values, the component, the Service, its port, the kind. */}}
{{- define "task-service.route" -}}
{{- $root := index . 0 }}
{{- $component := index . 2 }}
{{- $service := index . 3 }}
{{- $port := index . 4 }}
{{- $kind := index . 5 }}
{{- with index . 1 }}
{{- if .enabled -}}
apiVersion: gateway.networking.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $service }}
  labels:
    {{- include "task-service.labels" (list $root $component) | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- include "task-service.tpl" (list $root .) | nindent 4 }}
  {{- end }}
spec:
  parentRefs:
    {{- toYaml .parentRefs | nindent 4 }}
  {{- with .hostnames }}
  hostnames: {{ toJson . }}
  {{- end }}
  rules:
    - backendRefs:
        - {name: {{ $service }}, port: {{ $port }}}
{{- end }}
{{- end }}
{{- end }}
