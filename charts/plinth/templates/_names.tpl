{{/* Names, labels, images, and where things are. */}}

{{- define "plinth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects a service's pods. Not app.kubernetes.io/name: KubeRay selects by it. */}}
{{- define "plinth.selector" -}}
app.kubernetes.io/part-of: plinth
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{/* What selects every pod of the release. */}}
{{- define "plinth.selectorAll" -}}
app.kubernetes.io/part-of: plinth
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Marks of Ray's pods and of what talks to Redis, for NetworkPolicies. */}}
{{- define "plinth.roleLabels" -}}
{{- if eq .kind "ray" }}
plinth.dev/ray-node: "true"
{{- end }}
{{- if ne .kind "redis" }}
plinth.dev/redis-client: "true"
{{- end }}
{{- end -}}

{{- define "plinth.labels" -}}
{{ include "plinth.selector" . }}
app.kubernetes.io/name: plinth
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The chart's labels, and more (root, name, more), which change none of them. */}}
{{- define "plinth.labelsWith" -}}
{{- $own := include "plinth.labels" . | fromYaml -}}
{{ toYaml (merge $own (default dict .more)) }}
{{- end -}}

{{/* registry/repository:tag or @digest. Takes root, flavour, and a service's overrides. */}}
{{- define "plinth.image" -}}
{{- $base := get .root.Values.images .flavour -}}
{{- $over := .image | default dict -}}
{{- $registry := coalesce (get $over "registry") $base.registry .root.Values.images.registry -}}
{{- $repository := coalesce (get $over "repository") $base.repository -}}
{{- $digest := coalesce (get $over "digest") (ternary "" $base.digest (ne (get $over "tag" | default "") "")) -}}
{{- if $digest -}}
{{- printf "%s/%s@%s" $registry $repository $digest -}}
{{- else -}}
{{- printf "%s/%s:%s" $registry $repository (coalesce (get $over "tag") $base.tag .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "plinth.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "plinth.secretName" -}}
{{- default (printf "%s-secrets" (include "plinth.fullname" .)) .Values.secrets.existingSecret -}}
{{- end -}}

{{- define "plinth.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "plinth.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "plinth.redisHost" -}}
{{- if .Values.redis.enabled -}}{{ include "plinth.fullname" . }}-redis{{- else -}}{{ .Values.redis.external.host }}{{- end -}}
{{- end -}}

{{- define "plinth.redisPort" -}}
{{- if .Values.redis.enabled -}}6379{{- else -}}{{ .Values.redis.external.port }}{{- end -}}
{{- end -}}

{{- define "plinth.redisTls" -}}
{{- if and (not .Values.redis.enabled) .Values.redis.external.tls.enabled -}}true{{- end -}}
{{- end -}}

{{/* Name of the Redis password's Secret, then its key. */}}
{{- define "plinth.redisPasswordRef" -}}
{{- $external := .Values.redis.external -}}
{{- if and (not .Values.redis.enabled) $external.existingSecret -}}
name: {{ $external.existingSecret }}
key: {{ $external.passwordKey }}
{{- else -}}
name: {{ include "plinth.secretName" . }}
key: redis-password
{{- end -}}
{{- end -}}

{{- define "plinth.headAddress" -}}
{{ include "plinth.fullname" . }}-head.{{ .Release.Namespace }}.svc:6379
{{- end -}}

{{- define "plinth.storeClaim" -}}
{{- default (printf "%s-store" (include "plinth.fullname" .)) .Values.store.persistence.existingClaim -}}
{{- end -}}

{{- define "plinth.jobsClaim" -}}
{{- default (printf "%s-jobs" (include "plinth.fullname" .)) .Values.jobs.persistence.existingClaim -}}
{{- end -}}

{{- define "plinth.tlsSecret" -}}
{{- if .root.Values.tls.certManager.enabled -}}
{{- printf "%s-%s-tls" (include "plinth.fullname" .root) .name -}}
{{- else -}}
{{- get .root.Values.tls.existingSecrets .name -}}
{{- end -}}
{{- end -}}

{{/* Which database of which Redis, to tell two releases apart. */}}
{{- define "plinth.redisIdentity" -}}
{{ include "plinth.redisHost" . }}:{{ include "plinth.redisPort" . }}/{{ int .Values.redis.database }}
{{- end -}}

{{/* Where the store is, to tell when it would be another one. */}}
{{- define "plinth.storeIdentity" -}}
{{- if .Values.store.url -}}{{ trimSuffix "/" .Values.store.url }}{{- else -}}claim/{{ include "plinth.storeClaim" . }}{{- end -}}
{{- end -}}
