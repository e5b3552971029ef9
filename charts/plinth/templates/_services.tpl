{{/*
All services of the release as one YAML mapping, each with what it takes from `defaults` filled in,
so that every template loops over the same thing:
  name; kind (gateway or ray); stage: its name in certificates; health: the gRPC service that its
  health port tells of; replica: whether a stage's replica runs there; offers: Ray's custom
  resources of one pod.
*/}}
{{- define "plinth.services" -}}
{{- $root := . -}}
{{- $defaults := .Values.defaults -}}
{{- $health := dict "tokenizer" "plinth.internal.v1.TokenizerService" "trainer" "plinth.v1.JobService" "reward" "plinth.v1.RewardService" "coordinator" "plinth.v1.RunService" "inference" "plinth.internal.v1.InferenceService" -}}
{{- $all := dict -}}
{{- $own := dict "name" "gateway" "kind" "gateway" "stage" "gateway" "flavour" "gateway" "pods" (int .Values.gateway.replicas) -}}
{{- $_ := set $all "gateway" (mustMergeOverwrite (deepCopy $defaults) (deepCopy .Values.gateway) $own) -}}
{{- $own = dict "name" "head" "kind" "ray" "stage" "reconciler" "health" "" "replica" true "cpus" 0 "pods" 1 "offers" (dict "plinth/reconciler" 1) -}}
{{- $_ := set $all "head" (mustMergeOverwrite (deepCopy $defaults) (deepCopy .Values.head) $own) -}}
{{- range $name, $stage := .Values.stages -}}
{{- $offers := dict (printf "plinth/%s" $name) 1 -}}
{{- if and (eq $name "trainer") (not $root.Values.trainerWorkers.enabled) -}}
{{- $_ := set $offers "plinth/train-worker" $stage.workerSlots -}}
{{- end -}}
{{- $own := dict "name" $name "kind" "ray" "stage" $name "health" (get $health $name) "replica" true "offers" $offers -}}
{{- $_ := set $all $name (mustMergeOverwrite (deepCopy $defaults) (deepCopy $stage) $own) -}}
{{- end -}}
{{- if .Values.trainerWorkers.enabled -}}
{{- $own := dict "name" "trainer-workers" "kind" "ray" "stage" "trainer" "health" "" "replica" false "offers" (dict "plinth/train-worker" .Values.trainerWorkers.workerSlots) -}}
{{- $_ := set $all "trainer-workers" (mustMergeOverwrite (deepCopy $defaults) (deepCopy .Values.trainerWorkers) $own) -}}
{{- end -}}
{{- range $name, $svc := $all -}}
{{- if eq $svc.kind "ray" -}}
{{- $_ := set $svc "flavour" (ternary "cuda" "cpu" (gt (int $svc.gpu.count) 0)) -}}
{{- end -}}
{{- end -}}
{{ toYaml $all }}
{{- end -}}

{{/*
What Ray Serve runs, as its declarative configuration: KubeRay applies it, or the head's own
container does. A shard's application is made by the reconciler, from the template in its options.
*/}}
{{- define "plinth.serveConfig" -}}
{{- $apps := list -}}
{{- range $name, $stage := .Values.stages -}}
{{- if ne $name "inference" -}}
{{- $spec := dict "name" $name "factory" (printf "plinth.%s.service:build" $name) "cpus" 0.1 "resources" (dict (printf "plinth/%s" $name) 1) "surge_percent" 0 -}}
{{- $numbers := dict "name" $name "autoscaling_config" (include "plinth.numbers" (dict "root" $ "stage" $stage) | fromYaml) -}}
{{- $apps = append $apps (dict "name" $name "import_path" "plinth.cluster.applications:stage" "route_prefix" nil "args" $spec "deployments" (list $numbers)) -}}
{{- end -}}
{{- end -}}
{{- /* Serve kills 10 s after a drain should have ended, and a pod's hook waits for that, and more. */ -}}
{{- $drain := max 1 (sub (int (default .Values.defaults.drainSeconds .Values.stages.inference.drainSeconds)) 35) -}}
{{- $shard := dict "name" "inference" "factory" "plinth.inference.service:build" "stage" "inference" "resources" (dict "plinth/inference" 1) "surge_percent" (int .Values.stages.inference.surgePercent) "drain_s" $drain -}}
{{- $spec := dict "name" "reconciler" "factory" "plinth.cluster.reconciler:build" "cpus" 0 "resources" (dict "plinth/reconciler" 1) "surge_percent" 0 "options" (dict "shard" $shard) -}}
{{- $apps = append $apps (dict "name" "reconciler" "import_path" "plinth.cluster.applications:stage" "route_prefix" nil "args" $spec) -}}
proxy_location: Disabled
applications:
{{ toYaml $apps }}
{{- end -}}

{{/*
Of a stage (root, stage): between how many replicas Serve chooses, as `plinth.cluster.replicas`
makes it. Not among the application's arguments, since Serve takes any change of those for new code,
and would replace all replicas to change their number.
*/}}
{{- define "plinth.numbers" -}}
{{- $scaling := default dict .root.Values.config.scaling -}}
{{- $over := default 30 (get $scaling "over_s") -}}
{{- $down := ternary (get $scaling "down_after_s") 300 (hasKey $scaling "down_after_s") -}}
min_replicas: {{ .stage.replicas }}
max_replicas: {{ ternary (dig "autoscaling" "maxReplicas" 0 .stage) .stage.replicas (dig "autoscaling" "enabled" false .stage) }}
look_back_period_s: {{ $over }}
upscale_delay_s: 0
downscale_delay_s: 0
target_ongoing_requests: 1
policy:
  policy_function: plinth.cluster.scaling:Policy
  policy_kwargs: {over_s: {{ $over }}, down_after_s: {{ $down }}}
{{- end -}}

{{/* plinth.yaml of every pod: the operator's `config`, and what the chart decides. */}}
{{- define "plinth.settings" -}}
{{- $fixed := dict "host" "0.0.0.0" "stage_port" 50051 "health_port" 50050 "metrics_port" 9464 "log_to" "stderr" "log_format" "json" -}}
{{- $_ := set $fixed "gateway" (dict "host" "0.0.0.0" "port" 8080 "grpc_port" 8081 "drain_s" (int .Values.gateway.drainSeconds)) -}}
{{- $_ := set $fixed "trainer" (dict "worker_resource" "plinth/train-worker") -}}
{{- /* Neither half can have a slash in it, so that no two releases read alike. */ -}}
{{- $_ := set $fixed "release" (printf "%s/%s" .Release.Namespace (include "plinth.fullname" .)) -}}
{{- with .Values.store.url }}{{ $_ := set $fixed "store_url" . }}{{ end -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $fixed "tls" (dict "certificate" "/etc/plinth/tls/tls.crt" "key" "/etc/plinth/tls/tls.key" "ca" "/etc/plinth/tls/ca.crt") -}}
{{- end -}}
{{ toYaml (mustMergeOverwrite (deepCopy .Values.config) $fixed) }}
{{- end -}}
