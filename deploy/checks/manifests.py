"""Renders deploy/chart with each set of values in deploy/chart/examples, and checks what comes out.

    manifests.py write     renders deploy/kubernetes/NAME.yaml
    manifests.py check     fails if those files are stale, against Kubernetes' schemas, or against policy.py

Helm's own library renders. `--nats-chart FOLDER` adds NATS's chart, which the files in deploy/kubernetes leave out.
"""

import argparse
import difflib
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

import policy

DEPLOY = Path(__file__).resolve().parent.parent
CHART = DEPLOY / "chart"
RENDERED = DEPLOY / "kubernetes"
RELEASE = NAMESPACE = "emberline"
# The newest that the schemas have, and the oldest that the chart promises.
KUBERNETES = ["1.37", "1.30"]
# What the schemas of Kubernetes don't have; policy.py looks at what matters of them.
CUSTOM = {"keda.sh", "core.spinkube.dev", "cert-manager.io"}

HEADER = """\
# Made by `make manifests` of deploy/chart with deploy/chart/examples/{name}.yaml; change those instead.
# NATS is not in here: nats.yaml beside it, or its own chart. docs/deploy/kubernetes.md says how to apply it.
"""


def examples():
    """The names of the sets of values."""
    return sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))


def values_of(name):
    return yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text())


def render(chart, values):
    """All manifests in the order in which they are applied, as text."""
    templates = helm.Chart.load(chart).render(values, name=RELEASE, namespace=NAMESPACE)
    texts = []
    for path, text in sorted(templates.items()):
        if path.endswith("NOTES.txt") or "/templates/tests/" in path:
            continue
        for part in text.split("\n---"):
            part = "\n".join(line.rstrip() for line in part.strip().removeprefix("---").splitlines() if line.strip())
            if yaml.safe_load(part):
                texts.append(part.strip())
    # What others refer to comes first: an address of a service that is not there yet reaches no pod.
    first = ["ServiceAccount", "NetworkPolicy", "Issuer", "Certificate", "SpinAppExecutor", "ConfigMap", "Service"]
    rank = {kind: position for position, kind in enumerate(first)}
    texts.sort(key=lambda text: rank.get(yaml.safe_load(text)["kind"], len(first)))
    return "\n---\n".join(texts) + "\n"


def validate(document, place):
    """What Kubernetes' schemas, for the oldest and newest version, have against `document`."""
    if document["apiVersion"].split("/")[0] in CUSTOM:
        return []
    complaints = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            complaints.append(f"{place}: Kubernetes {version}: {error.message}")
        except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.VersionNotSupportedError) as error:
            complaints.append(f"{place}: Kubernetes {version}: {error}")
    return complaints


def check_text(name, text):
    """What is wrong with the manifests in `text`."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    complaints = []
    for document in documents:
        complaints += validate(document, f"{name}: {document['kind']} {document['metadata']['name']}")
    return complaints + [f"{name}: {complaint}" for complaint in policy.check(documents)], documents


def lint(chart, name, values):
    """What `helm lint --strict` says."""
    report = helm.lint(chart, values, strict=True, namespace=NAMESPACE)
    found = [message["error"] for message in report["messages"] if message["severity"] >= 2]
    # The dependency's archive is fetched by whoever installs.
    return [f"{name}: helm lint: {text}" for text in found if "chart directory is missing these dependencies" not in text]


def bad_values(chart):
    """Values that values.schema.json must refuse, so that a typing error is no silent default."""
    cases = [
        {"function": {"kind": "lambda"}},
        {"function": {"replica": 2}},
        {"workers": {"a": {"model": "m", "source": "s", "slots": 0}}},
        {"workers": {"Not A Name": {"model": "m", "source": "s"}}},
        {"bus": {"auth": {"method": "magic"}}},
        {"edge": {"enabled": "yes"}},
    ]
    complaints = []
    for case in cases:
        try:
            helm.Chart.load(chart).validate_schema(case)
        except helm.HelmError:
            continue
        complaints.append(f"values.schema.json accepts {json.dumps(case)}")
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("--nats-chart", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / "emberline"
        shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("charts"))
        if arguments.nats_chart:
            shutil.copytree(arguments.nats_chart, chart / "charts" / "nats")
        return write(chart) if arguments.action == "write" else check(chart, with_nats=bool(arguments.nats_chart))


def write(chart):
    RENDERED.mkdir(exist_ok=True)
    for name in examples():
        (RENDERED / f"{name}.yaml").write_text(HEADER.format(name=name) + render(chart, values_of(name)))
    return 0


def check(chart, with_nats):
    complaints = bad_values(chart)
    custom = set()
    count = 0
    rendered = {name: render(chart, values_of(name)) for name in examples()}
    for name, text in rendered.items():
        complaints += lint(chart, name, values_of(name))
        if not with_nats:
            path = RENDERED / f"{name}.yaml"
            found = path.read_text() if path.exists() else ""
            wanted = HEADER.format(name=name) + text
            if found != wanted:
                diff = difflib.unified_diff(found.splitlines(), wanted.splitlines(), str(path), "rendered", lineterm="")
                complaints.append(f"{name}: stale; run `make manifests`:\n" + "\n".join(list(diff)[:20]))
    by_hand = {path.stem: path.read_text() for path in RENDERED.glob("*.yaml") if path.stem not in rendered}
    for name, text in (rendered | by_hand).items():
        found, documents = check_text(name, text)
        complaints += found
        count += len(documents)
        custom |= {document["kind"] for document in documents if document["apiVersion"].split("/")[0] in CUSTOM}
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    files = ", ".join(sorted(rendered | by_hand))
    print(f"{count} objects in {files}: {len(complaints)} complaints (helm {helm.helm_sdk_version()}, "
          f"Kubernetes {' and '.join(KUBERNETES)}, policy)")
    print(f"note: {', '.join(sorted(custom))} have no schema here; policy.py alone looks at them. No cluster was asked")
    return 1 if complaints else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.exit(main())
