{{- define "weightless.driver" -}}csi.weightless.dev{{- end }}

{{- define "weightless.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "weightless.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "weightless.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "weightless.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that never change: selectors are immutable. Call with (list $ "node"). */}}
{{- define "weightless.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "weightless.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "weightless.labels" -}}
{{- $root := index . 0 -}}
{{ include "weightless.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Of pods: what selects them, and what the values give to all objects. No version: a keeper would seem out of date for it. */}}
{{- define "weightless.podLabels" -}}
{{ include "weightless.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with (index (index . 0).Values (index . 1)).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Of the image's own programs; call with the root. */}}
{{- define "weightless.image" -}}
{{- $repository := required "set image.repository to where your image is; none is published (docs/getting-started.md builds one)" .Values.image.repository -}}
{{- $image := merge (dict "repository" $repository "tag" (default .Chart.AppVersion .Values.image.tag)) .Values.image -}}
{{- include "weightless.imageOf" $image }}
{{- end }}

{{- define "weightless.imageOf" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "weightless.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $own := index $root.Values $component -}}
{{- default (printf "%s-%s" (include "weightless.fullname" $root) $component) ($own.serviceAccount).name }}
{{- end }}

{{- /* The plugin speaks to the API server only if one of these is asked for; without, it has no token. */}}
{{- define "weightless.nodeNeedsApi" -}}
{{- if or .Values.kubernetes.events .Values.kubernetes.removeTaint .Values.kubernetes.serviceAccountAnnotations }}true{{ end }}
{{- end }}

{{- /* With the values' own nodeSelector: Windows nodes are never meant, whatever else is said. */}}
{{- define "weightless.nodeSelector" -}}
{{- toYaml (merge (dict "kubernetes.io/os" "linux") .) }}
{{- end }}

{{- define "weightless.nodeAffinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - key: kubernetes.io/arch
            operator: In
            values: {{ toJson .Values.architectures }}
          # They run no pods of a DaemonSet, and a rollout would wait for them for ever.
          - key: eks.amazonaws.com/compute-type
            operator: NotIn
            values: [fargate]
          - key: type
            operator: NotIn
            values: [virtual-kubelet]
{{- end }}

{{- /* How registries are reached: by which proxies, and whom to trust. Call with the root. */}}
{{- define "weightless.networkEnv" -}}
{{- $found := list }}
{{- range $name, $value := dict "HTTP_PROXY" .Values.proxy.httpProxy "HTTPS_PROXY" .Values.proxy.httpsProxy "NO_PROXY" .Values.proxy.noProxy }}
{{- if $value }}{{ $found = append $found (dict "name" $name "value" $value) }}{{ end }}
{{- end }}
{{- if .Values.caBundle.configMap }}
{{- /* Beside the directory of authorities that the image has, not in its place. */}}
{{- $found = append $found (dict "name" "SSL_CERT_FILE" "value" (printf "/etc/weightless/ca/%s" .Values.caBundle.key)) }}
{{- end }}
{{- if $found }}{{ toYaml $found }}{{ end }}
{{- end }}

{{- /* A container that shares nothing but a socket. */}}
{{- define "weightless.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The directory of hosts.toml files as containers see it; empty for none. */}}
{{- define "weightless.certsDir" -}}
{{- if and .Values.registries.nodeCertsDir .Values.registries.hosts }}
{{- fail "registries: give nodeCertsDir or hosts, not both: there is one directory of hosts.toml files" }}
{{- end }}
{{- if or .Values.registries.nodeCertsDir .Values.registries.hosts }}/etc/weightless/certs.d{{ end }}
{{- end }}

{{- /* By item, so that a key that is not there is an event of the pod, and not a certificate that nobody knows. */}}
{{- define "weightless.caVolume" -}}
{{- with .Values.caBundle -}}
{{- if .configMap -}}
- name: ca
  configMap:
    name: {{ .configMap }}
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{- define "weightless.caMount" -}}
{{- if .Values.caBundle.configMap -}}
- name: ca
  mountPath: /etc/weightless/ca
  readOnly: true
{{- end }}
{{- end }}

{{- /* With (list $ MODE): who else than root reads the files, needs a group that may. */}}
{{- define "weightless.certsVolume" -}}
{{- $registries := (index . 0).Values.registries -}}
{{- if $registries.nodeCertsDir -}}
- name: certs
  hostPath:
    path: {{ $registries.nodeCertsDir }}
    type: Directory
{{- else if $registries.hosts -}}
- name: certs
  secret:
    secretName: {{ include "weightless.fullname" (index . 0) }}-registries
    defaultMode: {{ index . 1 }}
    items:
      {{- range $host, $files := $registries.hosts }}
      {{- range $file, $_ := $files }}
      - key: {{ include "weightless.certsKey" (list $host $file) }}
        path: {{ include "weightless.certsHost" $host }}/{{ $file }}
      {{- end }}
      {{- end }}
{{- end }}
{{- end }}

{{- /* host:5000 as containerd spells it where a name may have no colon. */}}
{{- define "weightless.certsHost" -}}
{{- regexReplaceAll ":([0-9]+)$" . "_${1}_" }}
{{- end }}

{{- define "weightless.certsKey" -}}
{{ include "weightless.certsHost" (index . 0) }}.{{ index . 1 }}
{{- end }}
