{{- define "tipserve.selector" -}}
app.kubernetes.io/name: tipserve
app.kubernetes.io/component: server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tipserve.labels" -}}
{{ include "tipserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "tipserve.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "tipserve.claim" -}}
{{ .Values.modelVolume.claim | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{/* All settings, with those of the parts that are enabled; yours win. */}}
{{- define "tipserve.settings" -}}
{{- $settings := dict "TIPSERVE_CACHE" "/var/cache/tipserve" }}
{{- if .Values.apiKeys.enabled }}
{{- $_ := set $settings "TIPSERVE_API_KEYS_FILE" "/etc/tipserve/api-keys/api_keys" }}
{{- end }}
{{- if .Values.front.enabled }}
{{- $_ := set $settings "TIPSERVE_HOST" "127.0.0.1" }}
{{- $_ := set $settings "TIPSERVE_METRICS_HOST" "0.0.0.0" }}
{{- $_ := set $settings "TIPSERVE_HTTP_PORT" "8010" }}
{{- $_ := set $settings "TIPSERVE_GRPC_PORT" "8011" }}
{{- $_ := set $settings "TIPSERVE_TRUSTED_PROXIES" "127.0.0.1" }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- if not .Values.front.enabled }}
{{- fail "tls.enabled needs front.enabled, which ends TLS" }}
{{- end }}
{{- $_ := set $settings "PROXY_TLS_CERT" "/etc/tipserve/tls/tls.crt" }}
{{- end }}
{{- if .Values.tracing.enabled }}
{{- $_ := set $settings "TIPSERVE_OTLP_ENDPOINT" .Values.tracing.endpoint }}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER" "parentbased_traceidratio" }}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER_ARG" .Values.tracing.sampleRatio }}
{{- end }}
{{- range $name, $value := merge (deepCopy .Values.settings) $settings }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* A changed setting changes the name, and so the pods. */}}
{{- define "tipserve.settingsName" -}}
{{ .Release.Name }}-settings-{{ include "tipserve.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{- define "tipserve.frontName" -}}
{{ .Release.Name }}-front-{{ .Files.Get "haproxy.cfg" | sha256sum | trunc 10 }}
{{- end }}

{{- define "tipserve.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}
