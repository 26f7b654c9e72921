"""The chart with values that no example has, and with values that it must refuse."""

import unittest

import helm_python as helm
import yaml

import manifests

SMOLLM = {"model": "a/b.c", "source": "hf:a/b"}
EXTERNAL = {"nats": {"enabled": False}}
SERVERS = {"servers": ["n.example:4222"], "functionServers": ["10.0.0.1:4222", "[fd00::1]:4333"]}

# Values that no example has, and what must be somewhere in what they render.
VARIANTS = [
    ({"bus": {"auth": {"method": "password"}}, "workers": {"a": SMOLLM}}, "EMBERLINE_ADMIN_PASSWORD"),
    ({"bus": {"auth": {"method": "credentials"}}, "workers": {"a": SMOLLM}}, "SPIN_VARIABLE_NATS_CREDENTIALS"),
    ({"bus": {"jetstreamDomain": "home"}, "workers": {"a": SMOLLM}}, "SPIN_VARIABLE_NATS_JETSTREAM_DOMAIN"),
    (EXTERNAL | {"bus": SERVERS}, "fd00::1"),
    (EXTERNAL | {"bus": SERVERS | {"tls": {"enabled": True}}}, "tls://n.example:4222"),
    ({"function": {"kind": "spin", "artifact": "a.example/app:1"}}, "--from"),
    ({"function": {"kind": "spinapp", "artifact": "a.example/app:1", "autoscaling": {"enabled": True}}}, "enableAutoscaling"),
    ({"function": {"variables": {"models": "x,y", "queue_limit": 5}}, "workers": {"a": SMOLLM}}, '"5"'),
    ({"function": {"apiKeyHashesSecret": "keys"}, "image": {"pullSecrets": ["pull"]}}, "SPIN_VARIABLE_API_KEY_HASHES"),
    ({"edge": {"enabled": True}, "function": {"enabled": False}}, "tcpSocket"),
    ({"workers": {"a": SMOLLM | {"auth": {"user": "pool", "secret": "pool-secret"}}}}, "pool-secret"),
    ({"workers": {"a": SMOLLM | {"cache": {"claim": "models"}}}}, "claimName: models"),
    ({"workers": {"a": SMOLLM | {"hubTokenSecret": "hub", "cache": {"create": True, "storageClass": "nfs"}}}}, "nfs"),
    ({"workers": {"a": SMOLLM | {"gpu": {"enabled": True, "resource": "amd.com/gpu", "runtimeClassName": ""}}}}, "amd.com/gpu"),
    ({"workers": {"a": SMOLLM | {"autoscaling": {"enabled": True, "min": 1}}}}, "worker-a=2Fb=2Ec-3"),
    ({"extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}]}, "emberline-x"),
]

# Values that make no sense together, and what the chart says to them.
REFUSED = [
    (EXTERNAL, "there is no NATS"),
    (EXTERNAL | {"bus": {"servers": ["n.example:4222"]}}, "bus.functionServers"),
    ({"workers": {"a": {"model": "m"}}}, "workers.a: set model and source"),
    ({"workers": {"a": SMOLLM | {"model": "ü", "autoscaling": {"enabled": True}}}}, "as a consumer's"),
    ({"function": {"kind": "spin"}}, "function.artifact"),
    ({"function": {"ingress": {"enabled": True}}}, "function.ingress.host"),
    ({"edge": {"enabled": True}, "bus": {"tls": {"enabled": True}}}, "the edge passes bytes on"),
]


class Chart(unittest.TestCase):
    def test_other_values_render_clean_too(self):
        for values, expected in VARIANTS:
            with self.subTest(values=values):
                text = manifests.render(manifests.CHART, values)
                complaints, _ = manifests.check_text("variant", text)
                self.assertEqual(complaints, [])
                self.assertIn(expected, text)

    def test_values_that_make_no_sense_are_refused(self):
        for values, expected in REFUSED:
            with self.subTest(values=values), self.assertRaisesRegex(helm.HelmError, expected):
                manifests.render(manifests.CHART, values)

    def test_a_field_that_kubernetes_does_not_know_is_found(self):
        documents = yaml.safe_load_all(manifests.render(manifests.CHART, {"workers": {"a": SMOLLM}}))
        deployment = next(d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"].endswith("worker-a"))
        deployment["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
        self.assertEqual(len(manifests.validate(deployment, "x")), len(manifests.KUBERNETES))


if __name__ == "__main__":
    unittest.main()
