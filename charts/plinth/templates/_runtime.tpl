{{/* What runs in a container finds: variables and volumes. Each takes root and svc. */}}

{{- define "plinth.env" -}}
{{- $root := .root -}}
{{- $svc := .svc -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: HOME, value: /tmp}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
- {name: PLINTH_CONFIG, value: /etc/plinth/plinth.yaml}
- {name: PLINTH_DATA_DIR, value: /var/lib/plinth}
- {name: PLINTH_ADVERTISE_HOST, value: $(POD_IP)}
{{ include "plinth.credentials" $root }}
{{- if eq $svc.kind "gateway" }}
# The platform's first API key. Without it in a Secret of one's own, one gateway makes one.
- name: PLINTH_GATEWAY__FIRST_KEY
  valueFrom: {secretKeyRef: {name: {{ include "plinth.secretName" $root }}, key: api-key, optional: true}}
{{- end }}
{{- if eq $svc.kind "ray" }}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "plinth.secretName" $root }}, key: auth_token}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_LOG_TO_STDERR, value: "1"}
# Ray would set one thread for actors that ask for less than one logical CPU.
- name: OMP_NUM_THREADS
  valueFrom: {resourceFieldRef: {containerName: ray, resource: requests.cpu, divisor: "1"}}
{{- if eq $root.Values.ray.mode "static" }}
- {name: RAY_ADDRESS, value: {{ ternary "127.0.0.1:6379" (include "plinth.headAddress" $root) (eq $svc.name "head") | quote }}}
{{- if and (eq $svc.name "head") $root.Values.ray.gcsFaultTolerance }}
{{- $scheme := ternary "rediss" "redis" (eq (include "plinth.redisTls" $root) "true") }}
- {name: RAY_REDIS_ADDRESS, value: {{ printf "%s://%s:%s" $scheme (include "plinth.redisHost" $root) (include "plinth.redisPort" $root) | quote }}}
# Ray tells states in one Redis apart by this alone. Neither half can have a slash in it.
- {name: RAY_external_storage_namespace, value: {{ printf "%s/%s" $root.Release.Namespace (include "plinth.fullname" $root) | quote }}}
{{- end }}
{{- end }}
{{- if and (eq $svc.name "head") (eq (include "plinth.redisTls" $root) "true") $root.Values.redis.external.tls.caSecret }}
- {name: RAY_REDIS_CA_CERT, value: /etc/plinth/redis/ca.crt}
{{- end }}
{{- with $root.Values.store.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: access-key-id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: secret-access-key}}
{{- end }}
{{- with $root.Values.store.s3.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with $root.Values.store.s3.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- if $root.Values.store.gcs.existingSecret }}
- {name: GOOGLE_APPLICATION_CREDENTIALS, value: /etc/plinth/gcs/key.json}
{{- end }}
{{- end }}
{{- with $svc.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The cluster's token and Redis' address with its password, for a container's `env`. */}}
{{- define "plinth.credentials" -}}
- name: PLINTH_CLUSTER_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "plinth.secretName" . }}, key: cluster-token}}
- name: REDIS_AUTH
  valueFrom:
    secretKeyRef:
      {{- include "plinth.redisPasswordRef" . | nindent 6 }}
{{- $tls := eq (include "plinth.redisTls" .) "true" }}
{{- $external := .Values.redis.external }}
{{- $user := ternary "" $external.username .Values.redis.enabled }}
{{- $ca := ternary "?ssl_ca_certs=/etc/plinth/redis/ca.crt" "" (and $tls (ne $external.tls.caSecret "")) }}
- name: PLINTH_REDIS_URL
  value: {{ printf "%s://%s:$(REDIS_AUTH)@%s:%s/%d%s" (ternary "rediss" "redis" $tls) $user (include "plinth.redisHost" .) (include "plinth.redisPort" .) (int .Values.redis.database) $ca | quote }}
{{- end -}}

{{- define "plinth.volumeMounts" -}}
{{- $root := .root -}}
{{- $svc := .svc -}}
- {name: config, mountPath: /etc/plinth/plinth.yaml, subPath: plinth.yaml, readOnly: true}
- {name: data, mountPath: /var/lib/plinth}
- {name: tmp, mountPath: /tmp}
{{- if $root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/plinth/tls, readOnly: true}
{{- end }}
{{- if and (eq (include "plinth.redisTls" $root) "true") $root.Values.redis.external.tls.caSecret }}
- {name: redis-ca, mountPath: /etc/plinth/redis, readOnly: true}
{{- end }}
{{- if eq $svc.kind "ray" }}
- {name: shm, mountPath: /dev/shm}
- {name: cache, mountPath: /var/lib/plinth/cache}
{{- if not $root.Values.store.url }}
- {name: store, mountPath: /var/lib/plinth/store}
{{- end }}
{{- if and $root.Values.jobs.persistence.enabled (eq $svc.stage "trainer") }}
- {name: jobs, mountPath: /var/lib/plinth/jobs}
{{- end }}
{{- if $root.Values.store.gcs.existingSecret }}
- {name: gcs, mountPath: /etc/plinth/gcs, readOnly: true}
{{- end }}
{{- end }}
{{- with $svc.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "plinth.volumes" -}}
{{- $root := .root -}}
{{- $svc := .svc -}}
- name: config
  configMap: {name: {{ include "plinth.fullname" $root }}-config}
- {name: data, emptyDir: {}}
- {name: tmp, emptyDir: {}}
{{- if $root.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "plinth.tlsSecret" (dict "root" $root "name" (ternary "trainer" $svc.name (eq $svc.name "trainer-workers"))) }}, defaultMode: 288}
{{- end }}
{{- if and (eq (include "plinth.redisTls" $root) "true") $root.Values.redis.external.tls.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ $root.Values.redis.external.tls.caSecret }}
    items: [{key: {{ $root.Values.redis.external.tls.caKey }}, path: ca.crt}]
{{- end }}
{{- if eq $svc.kind "ray" }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ include "plinth.quantity" $svc.shm }}}
- name: cache
  {{- if eq $root.Values.cache.type "hostPath" }}
  hostPath: {path: {{ $root.Values.cache.hostPath }}, type: DirectoryOrCreate}
  {{- else }}
  emptyDir: {sizeLimit: {{ include "plinth.quantity" $root.Values.cache.sizeLimit }}}
  {{- end }}
{{- if not $root.Values.store.url }}
- name: store
  persistentVolumeClaim: {claimName: {{ include "plinth.storeClaim" $root }}}
{{- end }}
{{- if and $root.Values.jobs.persistence.enabled (eq $svc.stage "trainer") }}
- name: jobs
  persistentVolumeClaim: {claimName: {{ include "plinth.jobsClaim" $root }}}
{{- end }}
{{- if $root.Values.store.gcs.existingSecret }}
- name: gcs
  secret:
    secretName: {{ $root.Values.store.gcs.existingSecret }}
    items: [{key: {{ $root.Values.store.gcs.key }}, path: key.json}]
{{- end }}
{{- if and (eq $svc.name "head") (eq $root.Values.ray.mode "static") }}
- name: applications
  configMap: {name: {{ include "plinth.fullname" $root }}-applications}
{{- end }}
{{- end }}
{{- with $svc.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The release's own Secret: what is there already, and random words for the rest. Made once in a
rendering, so that a checksum is of what the Secret will hold.
*/}}
{{- define "plinth.secretData" -}}
{{- if not (hasKey .Values "_secretData") -}}
{{- $before := default dict (lookup "v1" "Secret" .Release.Namespace (include "plinth.secretName" .)).data -}}
{{- $data := dict -}}
{{- range $key := list "cluster-token" "auth_token" "redis-password" "api-key" -}}
{{- $_ := set $data $key (default (randAlphaNum 48 | b64enc) (get $before $key)) -}}
{{- end -}}
{{- $_ := set .Values "_secretData" (toYaml $data) -}}
{{- end -}}
{{ .Values._secretData }}
{{- end -}}

{{/*
What the containers of a `kind` of pod (gateway, ray, redis) read of Secrets when they start, one
line each. Of a Secret that Helm can't see, nothing. The cluster's token, long and random, is always
among it, so that a checksum lets nobody guess a short password.
*/}}
{{- define "plinth.secretsRead" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $own := include "plinth.secretName" $root -}}
{{- $redis := include "plinth.redisPasswordRef" $root | fromYaml -}}
{{- $read := list (list $own "cluster-token") (list $redis.name $redis.key) -}}
{{- if eq .kind "gateway" -}}{{- $read = append $read (list $own "api-key") -}}{{- end -}}
{{- if eq .kind "ray" -}}
{{- $read = append $read (list $own "auth_token") -}}
{{- with $values.store.s3.existingSecret -}}{{- $read = concat $read (list (list . "access-key-id") (list . "secret-access-key")) -}}{{- end -}}
{{- with $values.store.gcs.existingSecret -}}{{- $read = append $read (list . $values.store.gcs.key) -}}{{- end -}}
{{- end -}}
{{- range $one := $read -}}
{{- $name := index $one 0 -}}
{{- $data := dict -}}
{{- if and (eq $name $own) (not $values.secrets.existingSecret) -}}
{{- $data = include "plinth.secretData" $root | fromYaml -}}
{{- else -}}
{{- $data = default dict (lookup "v1" "Secret" $root.Release.Namespace $name).data -}}
{{- end }}
{{ $name }} {{ index $one 1 }} {{ default "" (get $data (index $one 1)) }}
{{- end -}}
{{- end -}}
