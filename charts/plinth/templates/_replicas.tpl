{{/*
How many pods the manifest says of a workload that a HorizontalPodAutoscaler counts; empty: it says
none, and the autoscaler is the number's one owner. Takes root, kind, name, least.

Leaving out what the manifest before said makes Kubernetes set it to 1, and saying what another owns
is refused. So the number that there is is said on only where the chart owns it still:
  - by server-side apply (Helm 4), as long as its entry of managedFields has the field;
  - by patches of manifests (Helm 3), for good once a manifest has said it, which is all but those
    that note `plinth.dev/replicas: autoscaler`.
Of 0, which switches an autoscaler off, the least is made again.
*/}}
{{- define "plinth.autoscaledReplicas" -}}
{{- $live := lookup "apps/v1" .kind .root.Release.Namespace .name -}}
{{- if $live -}}
{{- $now := int $live.spec.replicas -}}
{{- $ours := ne (dig "annotations" "plinth.dev/replicas" "" $live.metadata) "autoscaler" -}}
{{- range $live.metadata.managedFields -}}
{{- if and (eq .operation "Apply") (hasKey (dig "f:metadata" "f:labels" dict .fieldsV1) "f:helm.sh/chart") -}}
{{- $ours = hasKey (dig "f:spec" dict .fieldsV1) "f:replicas" -}}
{{- end -}}
{{- end -}}
{{- if or $ours (eq $now 0) -}}
{{- max $now (int .least) -}}
{{- end -}}
{{- end -}}
{{- end -}}
