"""Each rule of policy.py is shown to fail, on the rendered manifests with one thing made wrong."""

import copy
import unittest

import yaml

import manifests
import policy


def load(name):
    return [d for d in yaml.safe_load_all((manifests.RENDERED / f"{name}.yaml").read_text()) if d]


GPU, HA, SPINTAINER, EDGE = load("gpu"), load("ha"), load("spintainer"), load("edge")


def one(documents, kind, part=""):
    """The first object of a kind whose name has `part` in it."""
    return next(d for d in documents if d["kind"] == kind and part in d["metadata"]["name"])


def pod(documents, part):
    return one(documents, "Deployment", part)["spec"]["template"]["spec"]


def container(documents, part):
    return pod(documents, part)["containers"][0]


def drop(thing, key):
    del thing[key]


def env(documents, part, name, value):
    for variable in container(documents, part)["env"]:
        if variable["name"] == name:
            variable["value"] = value


# What is wrong, in which manifests, what is done to them, and what the complaint says.
CASES = [
    ("root", GPU, lambda d: drop(pod(d, "worker")["securityContext"], "runAsNonRoot"), "may run as root"),
    ("seccomp", GPU, lambda d: drop(pod(d, "worker")["securityContext"], "seccompProfile"), "no seccomp profile"),
    ("token", GPU, lambda d: drop(pod(d, "worker"), "automountServiceAccountToken"), "gets a token"),
    ("host", GPU, lambda d: pod(d, "worker").update(hostNetwork=True), "sets hostNetwork"),
    ("folder", GPU, lambda d: pod(d, "worker")["volumes"].append({"name": "x", "hostPath": {}}), "a folder of the node"),
    ("disk", GPU, lambda d: pod(d, "function")["volumes"][0].update(emptyDir={}), "fill the node's disk"),
    ("writable", GPU, lambda d: drop(container(d, "worker")["securityContext"], "readOnlyRootFilesystem"), "write to its image"),
    ("rights", GPU, lambda d: container(d, "worker")["securityContext"].update(allowPrivilegeEscalation=True), "can gain rights"),
    ("capabilities", GPU, lambda d: drop(container(d, "worker")["securityContext"], "capabilities"), "drop ALL"),
    ("limit", GPU, lambda d: drop(container(d, "function")["resources"]["limits"], "memory"), "no limits of memory"),
    ("request", GPU, lambda d: drop(container(d, "function")["resources"]["requests"], "cpu"), "no requests of cpu"),
    ("latest", GPU, lambda d: container(d, "worker").update(image="a.example:5000/worker:latest"), "another one tomorrow"),
    ("no tag", GPU, lambda d: container(d, "worker").update(image="a.example:5000/worker"), "another one tomorrow"),
    ("readiness", GPU, lambda d: drop(container(d, "worker"), "readinessProbe"), "no readinessProbe"),
    ("liveness", GPU, lambda d: drop(container(d, "worker"), "livenessProbe"), "no livenessProbe"),
    ("drain", GPU, lambda d: env(d, "worker", "EMBERLINE_DRAIN_S", "50"), "before the 50 s of its drain"),
    ("default grace", GPU, lambda d: drop(pod(d, "worker"), "terminationGracePeriodSeconds"), "is killed after 30 s"),
    ("answers", GPU, lambda d: pod(d, "function").update(terminationGracePeriodSeconds=70), "that it has to end"),
    ("edge", EDGE, lambda d: pod(d, "edge").update(terminationGracePeriodSeconds=60), "that it has to end"),
    ("service", GPU, lambda d: drop(container(d, "function"), "lifecycle"), "out of its Service"),
    ("spread", GPU, lambda d: drop(pod(d, "worker"), "topologySpreadConstraints"), "may be on one node"),
    ("job", GPU, lambda d: drop(one(d, "Job")["spec"], "activeDeadlineSeconds"), "run for ever"),
    ("secret", GPU, lambda d: container(d, "function")["env"].append({"name": "X_PASSWORD", "value": "p"}), "in the open"),
    ("policy", GPU, lambda d: d.remove(one(d, "NetworkPolicy", "worker")), "no NetworkPolicy"),
    ("budget", GPU, lambda d: d.remove(one(d, "PodDisruptionBudget", "worker")), "no PodDisruptionBudget"),
    ("replicas", GPU, lambda d: one(d, "Deployment", "worker")["spec"].update(replicas=2), "an autoscaler does"),
    ("wait", GPU, lambda d: env(d, "function", "SPIN_VARIABLE_NO_WORKER_WAIT_S", "0"), "set no_worker_wait_s"),
    ("consumers", GPU, lambda d: d.remove(one(d, "Job")), "no job makes the consumers"),
    ("monitor", GPU, lambda d: trigger(d).update(natsServerMonitoringEndpoint="nats.default.svc:8222"), "SERVICE-headless:8222"),
    ("lane", GPU, lambda d: trigger(d).update(consumer="worker-qwen3-8b-1"), "no consumer of lane 0"),
    ("account", GPU, lambda d: trigger(d).update(account=""), "needs the account"),
    ("lanes", GPU, lambda d: one(d, "ScaledObject")["spec"]["triggers"].pop(), "add up the four lanes"),
    ("buffering", HA, lambda d: drop(nginx(d), "nginx.ingress.kubernetes.io/proxy-buffering"), "holds streams back"),
    ("silence", HA, lambda d: nginx(d).update({"nginx.ingress.kubernetes.io/proxy-read-timeout": "60"}), "cuts answers off"),
    ("twice", HA, lambda d: drop(nginx(d), "nginx.ingress.kubernetes.io/proxy-next-upstream"), "a request twice"),
    ("checks", SPINTAINER, lambda d: drop(one(d, "SpinApp")["spec"], "checks"), "has no checks"),
    ("app's limits", SPINTAINER, lambda d: drop(one(d, "SpinApp")["spec"]["resources"], "limits"), "no limits of cpu"),
    ("app's tag", SPINTAINER, lambda d: one(d, "SpinApp")["spec"].update(image="a.example/app"), "another one tomorrow"),
    ("app's replicas", SPINTAINER, lambda d: one(d, "SpinApp")["spec"].update(enableAutoscaling=True), "beside an autoscaler"),
]


def trigger(documents):
    return one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]


def nginx(documents):
    return one(documents, "Ingress")["metadata"]["annotations"]


class Policy(unittest.TestCase):
    def test_what_is_rendered_is_clean(self):
        for documents in (GPU, HA, SPINTAINER, EDGE):
            self.assertEqual(policy.check(documents), [])

    def test_each_rule_fails_on_what_it_is_for(self):
        for name, documents, spoil, expected in CASES:
            with self.subTest(name):
                spoiled = copy.deepcopy(documents)
                spoil(spoiled)
                found = policy.check(spoiled)
                self.assertTrue(any(expected in text for text in found), found)

    def test_a_models_name_is_written_as_in_subjects(self):
        self.assertEqual(policy.token("meta-llama/Llama-3.1-8B"), "meta-llama=2FLlama-3=2E1-8B")


if __name__ == "__main__":
    unittest.main()
