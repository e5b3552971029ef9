{{/* Volumes that are there already: what may be asked of them, and how they grow. */}}

{{/*
A quantity as text. A values file's whole number comes as a float, which Go would write as 8.5e+09.
*/}}
{{- define "plinth.quantity" -}}
{{- if kindIs "string" . -}}{{ . }}
{{- else if eq (float64 .) (floor .) -}}{{ printf "%.0f" (float64 .) }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{/* A quantity as a number, to be compared: "1Ti" is "1024Gi", as the API server writes it. */}}
{{- define "plinth.exact" -}}
{{- $text := include "plinth.quantity" . -}}
{{- $number := regexFind "^[0-9.]+([eE][-+]?[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- printf "%.3f" (mulf (float64 $number) (get (set $units "" 1.0) $unit)) -}}
{{- end -}}

{{/* The same as whole bytes. */}}
{{- define "plinth.bytes" -}}
{{- include "plinth.exact" . | float64 | printf "%.0f" -}}
{{- end -}}

{{/* The class of a volume (wanted, there): the one that it has, where none is named. */}}
{{- define "plinth.storageClass" -}}
{{- with coalesce .wanted .there }}
storageClassName: {{ . }}
{{- end -}}
{{- end -}}

{{/* Fails where another class is named (path, of, wanted, there). */}}
{{- define "plinth.sameClass" -}}
{{- if and .wanted (ne .wanted (default "" .there)) -}}
{{- fail (printf "%s.storageClass is %s and %s has %s, which Kubernetes lets nobody change: set %s.storageClass=%s, or move to another volume (docs/operations.md, Volumes)" .path .wanted .of (default "the default class" .there) .path (default "\"\"" .there)) -}}
{{- end -}}
{{- end -}}

{{/* Fails where less is asked for (path, size, there). */}}
{{- define "plinth.notSmaller" -}}
{{- if lt (include "plinth.bytes" .size | float64) (include "plinth.bytes" .there | float64) -}}
{{- $there := include "plinth.quantity" .there -}}
{{- fail (printf "%s.size is %s and the volume that there is has %s: Kubernetes shrinks none. Set %s.size=%s" .path (include "plinth.quantity" .size) $there .path $there) -}}
{{- end -}}
{{- end -}}

{{/* The command by which a claim grows (space, claim, size, there), and "; "; none if it need not. */}}
{{- define "plinth.growth" -}}
{{- if gt (include "plinth.bytes" .size | float64) (include "plinth.bytes" .there | float64) -}}
{{- printf "kubectl -n %s patch pvc %s -p '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"%s\"}}}}'; " .space .claim (include "plinth.quantity" .size) -}}
{{- end -}}
{{- end -}}
