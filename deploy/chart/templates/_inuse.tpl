{{- /*
Fails while pods use volumes of the driver, which only it can take away. Asked of the cluster by whoever runs Helm, with their rights;
`helm template` asks nobody, and finds none.
*/}}
{{- define "weightless.refuseInUse" -}}
{{- $driver := include "weightless.driver" . }}
{{- $claims := dict }}
{{- range (lookup "v1" "PersistentVolume" "" "").items }}
{{- if and (eq (dig "spec" "csi" "driver" "" .) $driver) (dig "spec" "claimRef" "" .) }}
{{- $_ := set $claims (printf "%s/%s" .spec.claimRef.namespace .spec.claimRef.name) true }}
{{- end }}
{{- end }}
{{- $users := list }}
{{- range $pod := (lookup "v1" "Pod" "" "").items }}
{{- $namespace := $pod.metadata.namespace }}
{{- if not (has (dig "status" "phase" "" $pod) (list "Succeeded" "Failed")) }}
{{- range dig "spec" "volumes" list $pod }}
{{- $claim := dig "persistentVolumeClaim" "claimName" "" . }}
{{- if hasKey . "ephemeral" }}{{ $claim = printf "%s-%s" $pod.metadata.name .name }}{{ end }}
{{- if or (eq (dig "csi" "driver" "" .) $driver) (hasKey $claims (printf "%s/%s" $namespace $claim)) }}
{{- $users = append $users (printf "%s/%s" $namespace $pod.metadata.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with uniq $users }}
{{- fail (printf "%d pods use model volumes; end them first: %s" (len .) (join ", " (slice . 0 (min 10 (len .) | int)))) }}
{{- end }}
{{- end }}
