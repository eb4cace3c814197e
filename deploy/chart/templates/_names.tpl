{{- define "tipserve.selector" -}}
app.kubernetes.io/name: tipserve
app.kubernetes.io/component: server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tipserve.labels" -}}
{{ include "tipserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* The image of a variant, such as "gpu": a list of the root and the variant. */}}
{{- define "tipserve.image" -}}
{{- $root := first . }}
{{- with $root.Values.registry }}{{ . }}/{{ end }}{{ $root.Values.image.repository }}:
{{- $root.Values.image.tag | default $root.Chart.AppVersion }}{{ with last . }}-{{ . }}{{ end }}
{{- end }}

{{/* All settings, with those of the enabled parts. Settings in the values override them. */}}
{{- define "tipserve.settings" -}}
{{- $settings := dict "TIPSERVE_CACHE" "/var/cache/tipserve" }}
{{- if .Values.apiKeys.enabled }}
{{- $_ := set $settings "TIPSERVE_API_KEYS_FILE" "/etc/tipserve/api-keys/api_keys" }}
{{- end }}
{{- if .Values.front.enabled }}
{{/* Only the pod reaches the server's own ports, except the metrics port. */}}
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
{{- if .Values.tls.clientCa }}
{{- $_ := set $settings "PROXY_TLS_CLIENT_CA" "/etc/tipserve/tls/ca.crt" }}
{{- end }}
{{- end }}
{{- if .Values.tracing.enabled }}
{{- $_ := set $settings "TIPSERVE_OTLP_ENDPOINT" .Values.tracing.endpoint }}
{{/* For requests without a sampling decision of their own. */}}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER" "parentbased_traceidratio" }}
{{- $_ := set $settings "OTEL_TRACES_SAMPLER_ARG" .Values.tracing.sampleRatio }}
{{- end }}
{{- range $name, $value := merge (deepCopy .Values.settings) $settings }}
{{- /* Helm reads numbers as floats, and would write 268435456 as 2.68435456e+08. */}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
{{- $value = int64 $value }}
{{- end }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* The digest in a name makes a change a rollout, which `kubectl rollout undo` reverts. */}}
{{- define "tipserve.settingsName" -}}
{{ .Release.Name }}-settings-{{ include "tipserve.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{- define "tipserve.frontName" -}}
{{ .Release.Name }}-front-{{ (.Files.Glob "proxy/*").AsConfig | sha256sum | trunc 10 }}
{{- end }}

{{- define "tipserve.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}

{{/* An init container that handles TIPSERVE_MODEL before the server: root, name, command, variant. */}}
{{- define "tipserve.step" -}}
{{- $root := .root -}}
name: {{ .name }}
image: {{ include "tipserve.image" (list $root .variant) }}
imagePullPolicy: IfNotPresent
command:
  - python
  - -P
  - -m
  - model
  - {{ .command }}
  {{- with get $root.Values.settings "TIPSERVE_CONVERT_PRECISIONS" }}
  {{- range splitList "," . }}
  - --precision={{ . }}
  {{- end }}
  {{- end }}
  - $(TIPSERVE_MODEL)
envFrom:
  - configMapRef:
      name: {{ include "tipserve.settingsName" $root }}
securityContext: {{- include "tipserve.hardened" $root | nindent 2 }}
{{- end }}
