{{/* The one pod template: metadata and spec of any service but Redis. Takes root and svc. */}}
{{- define "plinth.pod" -}}
{{- $root := .root -}}
{{- $svc := .svc -}}
{{- $static := eq $root.Values.ray.mode "static" -}}
{{- $scaledHead := and (eq $svc.name "head") (not $static) $root.Values.ray.autoscaler.enabled -}}
metadata:
  labels:
    {{- include "plinth.selector" (dict "root" $root "name" $svc.name) | nindent 4 }}
    {{- include "plinth.roleLabels" $svc | nindent 4 }}
    {{- with $svc.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "plinth.settings" $root | sha256sum }}
    checksum/secrets: {{ include "plinth.secretsRead" (dict "root" $root "kind" $svc.kind) | sha256sum }}
    {{- if and (eq $svc.kind "ray") (not $static) }}
    # KubeRay leaves tolerations out when it looks for changes, and would not take up new ones.
    checksum/tolerations: {{ include "plinth.tolerations" $svc | sha256sum }}
    {{- end }}
    {{- if and (eq $svc.name "head") $static }}
    checksum/applications: {{ include "plinth.serveConfig" $root | sha256sum }}
    {{- end }}
    {{- with $svc.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "plinth.pullSecrets" $root | nindent 2 }}
  # The store's identity hangs on it, and KubeRay binds the autoscaler's rights to it.
  serviceAccountName: {{ include "plinth.serviceAccountName" $root }}
  # Ray's autoscaler, a sidecar of the head, is all that speaks to the Kubernetes API.
  automountServiceAccountToken: {{ $scaledHead }}
  enableServiceLinks: false
  securityContext:
    {{- toYaml $svc.podSecurityContext | nindent 4 }}
  {{- if eq $svc.kind "gateway" }}
  terminationGracePeriodSeconds: {{ add $svc.drainSeconds 20 }}
  {{- else }}
  # Before the drain, its hook may wait 60 s: for another replica, and for Ray's head.
  terminationGracePeriodSeconds: {{ add $svc.drainSeconds 105 }}
  {{- end }}
  {{- include "plinth.scheduling" (dict "root" $root "svc" $svc) | nindent 2 }}
  {{- if and $static (eq $svc.kind "ray") (ne $svc.name "head") }}
  initContainers:
    - name: wait-for-head
      image: {{ include "plinth.image" (dict "root" $root "flavour" $svc.flavour "image" $svc.image) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [/bin/sh, -ec]
      args: ['until ray health-check --address "$RAY_ADDRESS"; do sleep 2; done']
      env:
        {{- include "plinth.env" (dict "root" $root "svc" $svc) | nindent 8 }}
      resources:
        {{- toYaml $root.Values.ray.waitForHead.resources | nindent 8 }}
      securityContext:
        {{- toYaml $svc.securityContext | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: data, mountPath: /var/lib/plinth}
        - {name: config, mountPath: /etc/plinth/plinth.yaml, subPath: plinth.yaml, readOnly: true}
  {{- end }}
  containers:
    - name: {{ $svc.kind }}
      image: {{ include "plinth.image" (dict "root" $root "flavour" $svc.flavour "image" $svc.image) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      {{- if eq $svc.kind "gateway" }}
      command: [python, -m, plinth.gateway]
      {{- else if $static }}
      command:
        {{- include "plinth.rayStart" (dict "root" $root "svc" $svc) | nindent 8 }}
      {{- end }}
      env:
        {{- include "plinth.env" (dict "root" $root "svc" $svc) | nindent 8 }}
      {{- with $svc.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- include "plinth.ports" (dict "root" $root "svc" $svc) | nindent 8 }}
      {{- include "plinth.probes" (dict "root" $root "svc" $svc) | nindent 6 }}
      {{- if eq $svc.kind "gateway" }}
      lifecycle:
        preStop:
          # Until no balancer sends here any more.
          exec: {command: [sleep, "5"]}
      {{- else if ne $svc.name "head" }}
      lifecycle:
        preStop:
          exec:
            command:
              - python
              - -m
              - plinth.cluster.node_drain
              - --timeout
              - {{ $svc.drainSeconds | quote }}
              {{- if $svc.replica }}
              - --stage
              - {{ $svc.stage }}
              {{- end }}
      {{- end }}
      resources:
        {{- include "plinth.resources" $svc | nindent 8 }}
      securityContext:
        {{- toYaml $svc.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "plinth.volumeMounts" (dict "root" $root "svc" $svc) | nindent 8 }}
    {{- if and (eq $svc.name "head") $static }}
    # What KubeRay's operator does elsewhere: tells Serve what to run, again after a head's loss.
    - name: applications
      image: {{ include "plinth.image" (dict "root" $root "flavour" $svc.flavour "image" $svc.image) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [python, -m, plinth.cluster.applications, /etc/plinth/applications.yaml]
      env:
        {{- include "plinth.env" (dict "root" $root "svc" $svc) | nindent 8 }}
      resources:
        {{- toYaml $root.Values.ray.applications.resources | nindent 8 }}
      securityContext:
        {{- toYaml $svc.securityContext | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp, subPath: applications}
        - {name: data, mountPath: /var/lib/plinth}
        - {name: config, mountPath: /etc/plinth/plinth.yaml, subPath: plinth.yaml, readOnly: true}
        - {name: applications, mountPath: /etc/plinth/applications.yaml, subPath: applications.yaml, readOnly: true}
    {{- end }}
  volumes:
    {{- include "plinth.volumes" (dict "root" $root "svc" $svc) | nindent 4 }}
{{- end -}}

{{- define "plinth.scheduling" -}}
{{- $svc := .svc -}}
{{- with $svc.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "plinth.tolerations" $svc }}
tolerations:
  {{- . | nindent 2 }}
{{- end }}
{{- with $svc.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $svc.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range $svc.topologySpreadConstraints }}
  - {{- toYaml . | nindent 4 }}
    labelSelector:
      matchLabels:
        {{- include "plinth.selector" (dict "root" $.root "name" $svc.name) | nindent 8 }}
  {{- end }}
{{- end }}
{{- with $svc.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $svc.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A service's, and where it has GPUs, theirs. */}}
{{- define "plinth.tolerations" -}}
{{- $gpus := gt (int (dig "gpu" "count" 0 .)) 0 -}}
{{- with concat (default list .tolerations) (default list (ternary (dig "gpu" "tolerations" list .) list $gpus)) -}}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{/* GPUs are requested and limited alike, as device plugins want it. */}}
{{- define "plinth.resources" -}}
{{- $resources := deepCopy (default dict .resources) -}}
{{- if gt (int .gpu.count) 0 -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set $resources $kind (mustMergeOverwrite (deepCopy (default dict (get $resources $kind))) (dict $.gpu.resource (toString $.gpu.count))) -}}
{{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* Names of Ray's ports are those that KubeRay knows them by. */}}
{{- define "plinth.ports" -}}
{{- if eq .svc.kind "gateway" -}}
- {name: http, containerPort: 8080, protocol: TCP}
- {name: grpc, containerPort: 8081, protocol: TCP}
{{- else -}}
{{- if eq .svc.name "head" -}}
- {name: gcs-server, containerPort: 6379, protocol: TCP}
- {name: dashboard, containerPort: 8265, protocol: TCP}
{{- if eq .root.Values.ray.mode "rayservice" }}
# Nothing listens there, as Serve's proxies are off; but without a port of this name KubeRay makes no
# Serve service, and a RayService without one never becomes active.
- {name: serve, containerPort: 8000, protocol: TCP}
{{- end }}
{{ end -}}
{{- if .svc.replica -}}
- {name: grpc, containerPort: 50051, protocol: TCP}
- {name: health, containerPort: 50050, protocol: TCP}
- {name: metrics, containerPort: 9464, protocol: TCP}
{{ end -}}
- {name: raylet, containerPort: 6800, protocol: TCP}
- {name: objects, containerPort: 6801, protocol: TCP}
- {name: ray-metrics, containerPort: 8090, protocol: TCP}
{{- end -}}
{{- end -}}

{{/*
A Ray pod starts and lives while its raylet (the head: GCS) answers; Serve itself restarts a replica
that is unwell. It is ready when its stage is, where each pod surely has a replica; a spare has none
and is ready as a node.
*/}}
{{- define "plinth.probes" -}}
{{- $svc := .svc -}}
{{- $times := $svc.probes -}}
{{- $alive := dict -}}
{{- $ready := dict -}}
{{- if eq $svc.kind "gateway" -}}
{{- $alive = dict "grpc" (dict "port" 8081 "service" "") -}}
{{- $ready = ternary (dict "grpc" (dict "port" 8081 "service" "plinth.v1.GenerationService")) (dict "httpGet" (dict "path" "/healthz" "port" "http")) (eq $svc.readiness "model") -}}
{{- else -}}
{{- $alive = dict "grpc" (dict "port" (ternary 6379 6800 (eq $svc.name "head")) "service" "") -}}
{{- $full := and $svc.health (ne $svc.name "inference") (eq (int $svc.pods) (int (default 0 $svc.replicas))) (not (dig "autoscaling" "enabled" false $svc)) -}}
{{- $ready = ternary (dict "grpc" (dict "port" 50050 "service" $svc.health)) $alive (not (not $full)) -}}
{{- end -}}
{{ toYaml (dict "startupProbe" (mustMergeOverwrite (deepCopy $alive) $times.startup) "livenessProbe" (mustMergeOverwrite (deepCopy $alive) $times.liveness) "readinessProbe" (mustMergeOverwrite (deepCopy $ready) $times.readiness)) }}
{{- end -}}

{{/* The container's command in `static` mode. */}}
{{- define "plinth.rayStart" -}}
{{- $svc := .svc -}}
- ray
- start
- --block
{{- if eq $svc.name "head" }}
- --head
- --port=6379
- --dashboard-host=127.0.0.1
- --dashboard-port=8265
{{- if .root.Values.ray.gcsFaultTolerance }}
# `ray start` takes these from nothing else; Kubernetes fills the password in, in the pod alone.
- --redis-password=$(REDIS_AUTH)
{{- if and (not .root.Values.redis.enabled) .root.Values.redis.external.username }}
- {{ printf "--redis-username=%s" .root.Values.redis.external.username | quote }}
{{- end }}
{{- end }}
{{- else }}
- --address=$(RAY_ADDRESS)
{{- end }}
- --node-ip-address=$(POD_IP)
- --node-manager-port=6800
- --object-manager-port=6801
- --metrics-export-port=8090
- --min-worker-port=10002
- --max-worker-port=19999
- --num-cpus={{ $svc.cpus }}
- --num-gpus={{ $svc.gpu.count }}
- {{ printf "--resources=%s" (toJson $svc.offers) | quote }}
- --disable-usage-stats
{{- end -}}
