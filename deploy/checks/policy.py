"""What every manifest of Emberline must be like, whatever the values: check(documents) lists what is not so."""

import re

# Longer than any answer may be silent by default (request_timeout_s in spin.toml).
SILENCE_S = 600
# A worker that is told to stop has EMBERLINE_DRAIN_S, and this to hand the rest to others.
GOODBYE_S = 15
DEFAULT_DRAIN_S = 30
CONSUMER = re.compile(r"worker-[A-Za-z0-9_=-]+-[0-3]")


def check(documents):
    """The rules that the objects of one installation break."""
    found = []
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        pod = pod_of(document)
        rules = [*(pod_rules(document, pod) if pod else []), *KINDS.get(document["kind"], lambda _: [])(document)]
        found += [f"{name}: {text}" for text in rules]
    return [*found, *together(documents)]


def pod_of(document):
    return document["spec"]["template"] if document["kind"] in {"Deployment", "StatefulSet", "Job", "DaemonSet"} else None


def pod_rules(document, template):
    spec = template["spec"]
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root: set securityContext.runAsNonRoot and runAsUser"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile: set securityContext.seccompProfile.type to RuntimeDefault"
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token for Kubernetes' API that nothing needs: set automountServiceAccountToken to false"
    for banned in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(banned):
            yield f"sets {banned}"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
        if "emptyDir" in volume and volume["name"] != "pid" and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"volume {volume['name']} may fill the node's disk: set emptyDir.sizeLimit"
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        for text in container_rules(container):
            yield f"container {container['name']}: {text}"
    if document["kind"] != "Job":
        for container in spec["containers"]:
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"container {container['name']}: has no {probe}"
        yield from grace_rules(spec)
        if document["spec"].get("replicas", 2) != 1 and not spec.get("topologySpreadConstraints"):
            yield "several pods may be on one node: set topologySpreadConstraints"
    elif document["spec"].get("activeDeadlineSeconds") is None:
        yield "may run for ever: set activeDeadlineSeconds"


def container_rules(container):
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield "can write to its image: set securityContext.readOnlyRootFilesystem"
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "can gain rights: set securityContext.allowPrivilegeEscalation to false"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "has capabilities: drop ALL"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if what not in resources.get(kind, {}):
                yield f"has no {kind} of {what}"
    yield from image_rules(container["image"])
    for variable in container.get("env", []):
        if re.search(r"PASSWORD|SEED|TOKEN|CREDENTIALS$|_KEY$", variable["name"]) and "value" in variable:
            if not variable["value"].startswith("/"):
                yield f"has the secret {variable['name']} in the open: take it from a Secret"


def image_rules(image):
    tag = image.rpartition("/")[2].partition(":")[2]
    if not tag or tag == "latest":
        yield f"image {image} is another one tomorrow: give it a tag"


def grace_rules(spec):
    grace = spec.get("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        environment = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        arguments = [*container.get("command", []), *container.get("args", [])]
        if "EMBERLINE_MODEL_PATH" in environment:
            drain = int(environment.get("EMBERLINE_DRAIN_S") or DEFAULT_DRAIN_S)
            if grace < drain + GOODBYE_S:
                yield f"is killed after {grace} s, before the {drain} s of its drain and a goodbye of {GOODBYE_S} s"
        for argument in arguments:
            option, _, seconds = argument.partition("=")
            if option not in {"--grace-s", "--drain-s"}:
                continue
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if sleep < 5:
                yield "stops before it is out of its Service: set lifecycle.preStop.sleep to 5 s or more"
            if grace <= sleep + int(seconds):
                yield f"is killed after {grace} s, before the {sleep + int(seconds)} s that it has to end"


def ingress_rules(document):
    notes = document["metadata"].get("annotations", {})
    nginx = "nginx.ingress.kubernetes.io/"
    if document["spec"].get("ingressClassName") == "nginx":
        if notes.get(f"{nginx}proxy-buffering") != "off":
            yield "holds streams back: set proxy-buffering to off"
        for side in ("read", "send"):
            if int(notes.get(f"{nginx}proxy-{side}-timeout", 60)) < SILENCE_S:
                yield f"cuts answers off that are silent for {SILENCE_S} s: raise proxy-{side}-timeout"
        if notes.get(f"{nginx}proxy-next-upstream") not in {"error", "off"}:
            yield "may send a request twice: set proxy-next-upstream to error"


def scaled_object_rules(document):
    spec = document["spec"]
    names = [trigger["name"] for trigger in spec["triggers"]]
    if names != ["lane0", "lane1", "lane2", "lane3"] or spec["advanced"]["scalingModifiers"]["formula"] != " + ".join(names):
        yield "does not add up the four lanes of the queue"
    for lane, trigger in enumerate(spec["triggers"]):
        metadata = trigger["metadata"]
        host, _, port = metadata["natsServerMonitoringEndpoint"].partition(":")
        # KEDA puts the name of the consumer's leader before it, which only a headless service resolves.
        if port != "8222" or not host.partition(".")[0].endswith("-headless"):
            yield f"{trigger['name']}: NATS's chart has its monitoring port at SERVICE-headless:8222"
        if not CONSUMER.fullmatch(metadata["consumer"]) or not metadata["consumer"].endswith(f"-{lane}"):
            yield f"{trigger['name']}: {metadata['consumer']} is no consumer of lane {lane}"
        if not metadata.get("account"):
            yield f"{trigger['name']}: KEDA needs the account, $G where none is configured"


def spin_app_rules(document):
    spec = document["spec"]
    yield from image_rules(spec["image"])
    if not {"readiness", "liveness"} <= spec.get("checks", {}).keys():
        yield "has no checks"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= spec.get("resources", {}).get(kind, {}).keys():
            yield f"has no {kind} of cpu and memory"
    if spec.get("enableAutoscaling") and "replicas" in spec:
        yield "has replicas beside an autoscaler"


KINDS = {"Ingress": ingress_rules, "ScaledObject": scaled_object_rules, "SpinApp": spin_app_rules}


def together(documents):
    """What only shows where one object is held against another."""
    budgets = [labels(d["spec"]["selector"]) for d in documents if d["kind"] == "PodDisruptionBudget"]
    policies = [labels(d["spec"]["podSelector"]) for d in documents if d["kind"] == "NetworkPolicy"]
    scaled = {d["spec"]["scaleTargetRef"]["name"] for d in documents if d["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}}
    for document in documents:
        template = pod_of(document)
        if not template:
            continue
        name = f"{document['kind']} {document['metadata']['name']}"
        own = template["metadata"]["labels"].items()
        if not any(policy <= own for policy in policies):
            yield f"{name}: no NetworkPolicy selects it"
        if document["kind"] != "Job":
            if not any(budget <= own for budget in budgets):
                yield f"{name}: no PodDisruptionBudget selects it"
            if document["metadata"]["name"] in scaled and "replicas" in document["spec"]:
                yield f"{name}: sets replicas, which an autoscaler does, too"
    for document in documents:
        if document["kind"] == "ScaledObject" and document["spec"]["minReplicaCount"] == 0:
            model = document["spec"]["triggers"][0]["metadata"]["consumer"][len("worker-"):-len("-0")]
            yield from waits_for_first_worker(documents, document["metadata"]["name"], model)


def waits_for_first_worker(documents, name, model):
    """Where a model may have no worker, requests wait for one, and a job has made the consumers that KEDA counts."""
    for document in documents:
        for container in (pod_of(document) or {}).get("spec", {}).get("containers", []):
            environment = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            if "SPIN_VARIABLE_NATS_SERVER" in environment and int(environment.get("SPIN_VARIABLE_NO_WORKER_WAIT_S") or 0) == 0:
                yield f"ScaledObject {name}: starts from none, and the function refuses requests: set no_worker_wait_s"
    made = [
        argument
        for document in documents
        if document["kind"] == "Job"
        for argument in pod_of(document)["spec"]["containers"][0].get("args", [])
        if argument.startswith("--model=")
    ]
    if not any(token(argument.removeprefix("--model=")) == model for argument in made):
        yield f"ScaledObject {name}: no job makes the consumers of its model"


def token(model):
    return re.sub(rb"[^A-Za-z0-9_-]", lambda byte: b"=%02X" % byte[0][0], model.encode()).decode()


def labels(selector):
    return selector.get("matchLabels", {}).items()
