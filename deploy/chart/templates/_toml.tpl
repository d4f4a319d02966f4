{{- /*
weightless.toml, from values. Written by hand and not by toToml: YAML's numbers are floats to Helm, and `8.0` connections are no whole
number to TOML. Call weightless.tomlTable with (list PATH MAP): plain keys first, then the tables in it.
*/}}
{{- define "weightless.tomlValue" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) }}{{ include "weightless.tomlNumber" . }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}

{{- define "weightless.tomlNumber" -}}
{{- if eq (float64 .) (float64 (int64 .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "weightless.tomlTable" -}}
{{- $path := index . 0 -}}
{{- $map := index . 1 -}}
{{- range $key, $value := $map }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "weightless.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := $map }}
{{- if kindIs "map" $value }}
{{- $name := regexMatch "^[A-Za-z0-9_-]+$" $key | ternary $key (quote $key) }}
{{- $inner := $name }}
{{- if $path }}{{ $inner = printf "%s.%s" $path $name }}{{ end }}

[{{ $inner }}]
{{- include "weightless.tomlTable" (list $inner $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What holds for plugin and controller alike, as a map in YAML. */}}
{{- define "weightless.commonConfig" -}}
{{- $own := deepCopy .Values.config }}
{{- with include "weightless.certsDir" . }}{{ $_ := set $own "certs-dir" . }}{{ end }}
{{- $credentials := dict }}
{{- with .Values.credentials.allow }}{{ $_ := set $credentials "allow" . }}{{ end }}
{{- if .Values.credentials.dockerConfigSecret }}{{ $_ := set $credentials "docker-config" "/etc/weightless/docker" }}{{ end }}
{{- if $credentials }}{{ $_ := set $own "credentials" $credentials }}{{ end }}
{{- toYaml $own }}
{{- end }}

{{- /* OpenShift's nodes enforce SELinux, and have this label. */}}
{{- define "weightless.seLinuxContext" -}}
{{- .Values.seLinuxContext | default (ternary "system_u:object_r:container_file_t:s0" "" .Values.openshift) }}
{{- end }}

{{- /* What this chart decides goes over what `config` says. */}}
{{- define "weightless.config" -}}
{{- $own := include "weightless.commonConfig" . | fromYaml }}
{{- $_ := set $own "cache-dir" .Values.cache.path }}
{{- $cache := dict "free-space" .Values.cache.freeSpace "native-copies" .Values.cache.nativeCopies }}
{{- with .Values.cache.quota }}{{ $_ := set $cache "quota" . }}{{ end }}
{{- $_ := set $own "cache" $cache }}
{{- $node := dict "kubelet-dir" .Values.kubeletDir "state-dir" .Values.stateDir }}
{{- if .Values.metrics.enabled }}{{ $_ := set $node "metrics-address" (printf ":%d" (int .Values.metrics.port)) }}{{ end }}
{{- if .Values.keeper.enabled }}{{ $_ := set $node "keeper" (printf "unix://%s/keeper.sock" .Values.keeper.socketDir) }}{{ end }}
{{- with include "weightless.seLinuxContext" . }}
{{- $_ := set $own "mount" (set (get $own "mount" | default dict) "selinux-context" .) }}
{{- end }}
{{- with int .Values.node.maxVolumes }}{{ $_ := set $node "max-volumes" . }}{{ end }}
{{- $_ := set $own "node" $node }}
{{- $kubernetes := dict }}
{{- if not .Values.kubernetes.events }}{{ $_ := set $kubernetes "events" "off" }}{{ end }}
{{- if .Values.kubernetes.serviceAccountAnnotations }}{{ $_ := set $kubernetes "service-account-annotations" true }}{{ end }}
{{- with .Values.kubernetes.removeTaint }}{{ $_ := set $kubernetes "remove-taint" . }}{{ end }}
{{- if $kubernetes }}{{ $_ := set $own "kubernetes" $kubernetes }}{{ end }}
{{- if .Values.credentials.providers.config }}
{{- $credentials := get $own "credentials" | default dict }}
{{- $_ := set $credentials "provider-config" "/etc/weightless/providers/config" }}
{{- $_ := set $credentials "provider-bin-dir" "/etc/weightless/providers/bin" }}
{{- $_ := set $credentials "provider-user" (int .Values.credentials.providers.user) }}
{{- $_ := set $own "credentials" $credentials }}
{{- end }}
{{- include "weightless.tomlTable" (list "" $own) | trim }}
{{- end }}

{{- /* A controller mounts nothing, and no credential provider is on its node for it. */}}
{{- define "weightless.controllerConfig" -}}
{{- $own := omit (include "weightless.commonConfig" . | fromYaml) "fetch" "mount" }}
{{- include "weightless.tomlTable" (list "" $own) | trim }}
{{- end }}
