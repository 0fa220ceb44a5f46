{{/* Name of everything in the chart. */}}
{{- define "softspec.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* Labels by which pods are found; they never change. */}}
{{- define "softspec.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "softspec.labels" -}}
{{ include "softspec.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "softspec.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* Port, by name, of probes and metrics. */}}
{{- define "softspec.ops" -}}
{{ ternary "ops" "http" (gt (int .Values.opsPort) 0) }}
{{- end }}

{{/* A volume of a place: a claim or an OCI artefact. */}}
{{- define "softspec.volume" -}}
- name: {{ .name }}
  {{- if .place.claim }}
  persistentVolumeClaim: {claimName: {{ .place.claim | quote }}, readOnly: true}
  {{- else }}
  image: {reference: {{ .place.image | quote }}, pullPolicy: IfNotPresent}
  {{- end }}
{{- end }}

{{- define "softspec.mount" -}}
- name: {{ .name }}
  mountPath: {{ .path }}
  {{- with .place.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  readOnly: true
{{- end }}

{{/* What values.schema.json cannot say. */}}
{{- define "softspec.check" -}}
{{- $names := list -}}
{{- range .Values.ensembles }}{{ $names = append $names .name }}{{ end -}}
{{- if ne (len ($names | uniq)) (len $names) -}}
{{ fail (printf "ensembles are named %s: expected different names" (join ", " $names)) }}
{{- end -}}
{{- if and .Values.serverConfig.upstreams .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{ fail "serverConfig has upstreams, but networkPolicy.egress lets nothing out to them: add a rule" }}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{ fail "autoscaling.minReplicas is above autoscaling.maxReplicas: expected at most as many" }}
{{- end -}}
{{- if not (or .Values.rollout.maxSurge .Values.rollout.maxUnavailable) -}}
{{ fail "rollout.maxSurge and rollout.maxUnavailable are 0: nothing could ever be replaced; set one to 1" }}
{{- end -}}
{{- end }}
