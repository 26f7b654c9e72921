{{/* Names, labels, and what all pods have in common. */}}

{{- define "emberline.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{/* The name that NATS's chart gives to its service. */}}
{{- define "emberline.nats" -}}
{{- $name := default "nats" .Values.nats.nameOverride -}}
{{- default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) .Values.nats.fullnameOverride -}}
{{- end }}

{{/* What selects the pods of a part of the release: (dict "root" $ "part" "worker"). */}}
{{- define "emberline.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- with .pool }}
emberline/pool: {{ . }}
{{- end }}
{{- end }}

{{- define "emberline.labels" -}}
{{ include "emberline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The image of a name: (dict "root" $ "name" "emberline-worker"). */}}
{{- define "emberline.image" -}}
{{- with .root.Values.image -}}
{{- with .registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $.name }}:{{ default $.root.Chart.AppVersion .tag }}
{{- end }}
{{- end }}

{{/* What every pod of ours says of itself. */}}
{{- define "emberline.pod" -}}
serviceAccountName: {{ include "emberline.name" . }}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "emberline.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Pods of a part on different nodes, as far as there are some. */}}
{{- define "emberline.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "emberline.selector" . | nindent 8 }}
{{- end }}

{{/* Where a pod may run: nodeSelector and tolerations of (dict "on" VALUES). */}}
{{- define "emberline.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Addresses of NATS for programs, which know names. */}}
{{- define "emberline.servers" -}}
{{- $scheme := ternary "tls" "nats" .Values.bus.tls.enabled -}}
{{- $hosts := ternary (list (printf "%s.%s.svc:4222" (include "emberline.nats" .) .Release.Namespace)) .Values.bus.servers .Values.nats.enabled -}}
{{- if not $hosts }}{{ fail "there is no NATS: set nats.enabled, or bus.servers to the addresses of yours" }}{{ end -}}
{{- range $i, $host := $hosts }}{{ if $i }},{{ end }}{{ $scheme }}://{{ $host }}{{ end -}}
{{- end }}

{{- define "emberline.tlsServerName" -}}
{{- default (printf "%s.%s.svc" (include "emberline.nats" .) .Release.Namespace) .Values.bus.tls.serverName -}}
{{- end }}

{{/* Environment by which a program proves who it is: (dict "root" $ "auth" (dict "user" … "secret" …) "password" NAME). */}}
{{- define "emberline.natsEnvironment" -}}
{{- $bus := .root.Values.bus -}}
- {name: EMBERLINE_NATS, value: {{ include "emberline.servers" .root | quote }}}
- {name: EMBERLINE_NATS_USER, value: {{ .auth.user | quote }}}
{{- if eq $bus.auth.method "nkey" }}
- {name: EMBERLINE_NATS_NKEY_FILE, value: /etc/emberline/nats/seed}
{{- else if eq $bus.auth.method "credentials" }}
- {name: EMBERLINE_NATS_CREDENTIALS, value: /etc/emberline/nats/user.creds}
{{- else }}
- name: {{ .password }}
  valueFrom:
    secretKeyRef: {name: {{ .auth.secret }}, key: password}
{{- end }}
{{- if $bus.tls.enabled }}
- {name: EMBERLINE_NATS_CA, value: /etc/emberline/ca/ca.crt}
{{- end }}
{{- with $bus.jetstreamDomain }}
- {name: EMBERLINE_NATS_JETSTREAM_DOMAIN, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "emberline.natsMounts" -}}
{{- if ne .Values.bus.auth.method "password" }}
- {name: nats-user, mountPath: /etc/emberline/nats, readOnly: true}
{{- end }}
{{- if .Values.bus.tls.enabled }}
- {name: nats-ca, mountPath: /etc/emberline/ca, readOnly: true}
{{- end }}
{{- end }}

{{/* Volumes of natsMounts: (dict "root" $ "secret" NAME). */}}
{{- define "emberline.natsVolumes" -}}
{{- if ne .root.Values.bus.auth.method "password" }}
- name: nats-user
  secret: {secretName: {{ .secret }}, defaultMode: 0440}
{{- end }}
{{- if .root.Values.bus.tls.enabled }}
- name: nats-ca
  secret:
    secretName: {{ .root.Values.bus.tls.secret }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{/* All settings of a pool: (dict "root" $ "pool" KEY). */}}
{{- define "emberline.pool" -}}
{{- $pool := mergeOverwrite (deepCopy .root.Values.workerDefaults) (deepCopy (get .root.Values.workers .pool)) -}}
{{- if not (and $pool.model $pool.source) }}{{ fail (printf "workers.%s: set model and source" .pool) }}{{ end -}}
{{- $_ := set $pool "auth" (mergeOverwrite (deepCopy .root.Values.bus.auth.worker) $pool.auth) -}}
{{- toJson $pool -}}
{{- end }}

{{/* A model's name in subjects and consumers: letters, digits, - and _ stand for themselves, the rest is =XX. */}}
{{- define "emberline.modelToken" -}}
{{- $token := . | replace "=" "=3D" | replace "." "=2E" | replace "/" "=2F" | replace ":" "=3A" | replace "@" "=40" | replace "+" "=2B" | replace " " "=20" -}}
{{- if not (regexMatch "^[A-Za-z0-9_=-]+$" $token) }}{{ fail (printf "the chart can't write the model's name %s as a consumer's; `emberline nats setup --dry-run --model` shows it" .) }}{{ end -}}
{{- $token -}}
{{- end }}

{{/* Variables of the function, as a list of Kubernetes' {name, value or valueFrom} with spin.toml's names. */}}
{{- define "emberline.variables" -}}
{{- $bus := .Values.bus -}}
{{- $models := list -}}
{{- $wait := "0" -}}
{{- range $key, $_ := .Values.workers -}}
{{- $pool := include "emberline.pool" (dict "root" $ "pool" $key) | fromJson -}}
{{- $models = append $models $pool.model -}}
{{- if and $pool.autoscaling.enabled (eq (int $pool.autoscaling.min) 0) }}{{ $wait = "120" }}{{ end -}}
{{- end -}}
{{- $given := .Values.function.variables -}}
{{- $own := dict
  "nats_scheme" (ternary "tls" "nats" $bus.tls.enabled)
  "nats_user" $bus.auth.function.user
  "models" ($models | uniq | sortAlpha | join ",")
  "model_aliases" ""
  "no_worker_wait_s" $wait -}}
{{- if .Values.nats.enabled -}}
{{- /* The kubelet puts the service's address in the place of $(…). */ -}}
{{- $service := include "emberline.nats" . | upper | replace "-" "_" -}}
{{- $_ := set $own "nats_server" (printf "$(%s_SERVICE_HOST):4222" $service) -}}
{{- else -}}
{{- $names := list "nats_server" "nats_server_b" "nats_server_c" -}}
{{- if and (not $bus.functionServers) (not (hasKey $given "nats_server")) }}{{ fail "set bus.functionServers to IP:PORT of your NATS, which the function needs beside bus.servers" }}{{ end -}}
{{- range $i, $server := $bus.functionServers }}{{ $_ := set $own (index $names $i) $server }}{{ end -}}
{{- end -}}
{{- if $bus.tls.enabled }}{{ $_ := set $own "nats_tls_server_name" (include "emberline.tlsServerName" .) }}{{ end -}}
{{- if $bus.jetstreamDomain }}{{ $_ := set $own "nats_jetstream_domain" $bus.jetstreamDomain }}{{ end -}}
{{- range $name, $value := merge (deepCopy $given) $own }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- $secret := $bus.auth.function.secret }}
{{- $proof := get (dict "nkey" (list "nats_nkey_seed" "seed") "password" (list "nats_password" "password") "credentials" (list "nats_credentials" "user.creds")) $bus.auth.method }}
- name: {{ first $proof }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ last $proof }}}}
{{- if $bus.tls.enabled }}
- name: nats_tls_ca
  valueFrom: {secretKeyRef: {name: {{ $bus.tls.secret }}, key: ca.crt}}
{{- end }}
{{- with .Values.function.apiKeyHashesSecret }}
- name: api_key_hashes
  valueFrom: {secretKeyRef: {name: {{ . }}, key: api_key_hashes}}
{{- end }}
{{- end }}
