"""Checks rayjob.yaml against KubeRay's own schema, which comes with its releases.

    pip install pyyaml jsonschema
    python docs/cluster/check_manifest.py ray.io_rayjobs.yaml

The file is helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of https://github.com/ray-project/kuberay.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

MANIFEST = Path(__file__).with_name("rayjob.yaml")


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    crd = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    manifest = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    group, version = manifest["apiVersion"].split("/")
    assert (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, manifest["kind"])
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == version]
    found = list(jsonschema.Draft202012Validator(_strict(schema)).iter_errors(manifest))
    for error in found:
        print(f"{'/'.join(map(str, error.absolute_path))}: {error.message}")
    print(f"{MANIFEST.name}: {'valid' if not found else f'{len(found)} errors'}")
    return bool(found)


def _strict(schema: Any) -> Any:
    """The same, where a field that Kubernetes would drop in silence is an error, and int-or-string is either."""
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) if key != "properties" else value for key, value in schema.items()}
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            made["additionalProperties"] = schema.get("type") != "object" or not schema["properties"]
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    return made


if __name__ == "__main__":
    sys.exit(main())
