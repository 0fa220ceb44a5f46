"""Who may do what: the container on its node, clients and metrics in the cluster, the server outside of it."""

from collections.abc import Mapping

import pytest
import yaml

from tests.support.chart import EXAMPLES, NAMESPACE, Manifest, container_of, only, pod_of, render

pytestmark = pytest.mark.slow


def test_the_container_may_write_nothing_but_its_caches(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests), container_of(manifests)
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert writable == {"/home/softspec", "/tmp", "/dev/shm"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False


def test_keys_come_from_secrets_that_exist_and_are_nowhere_in_the_manifests() -> None:
    manifests = render("oci")
    keys = next(volume["secret"] for volume in pod_of(manifests)["volumes"] if volume["name"] == "keys")
    variable = next(each for each in container_of(manifests)["env"] if each["name"] == "LARGE_API_KEY")

    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    assert keys == {"secretName": "softspec-keys", "defaultMode": 0o440}
    assert "--keys=/keys/keys.yaml" in container_of(manifests)["args"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "upstream-large", "key": "api-key"}
    assert "value" not in variable


def is_admitted(policy: Manifest, namespace: Mapping[str, str], port: str) -> bool:
    """Whether a policy lets pods of a namespace with these labels in, at a port."""
    return any(
        any(peer["namespaceSelector"]["matchLabels"].items() <= namespace.items() for peer in rule["from"])
        and port in {each["port"] for each in rule["ports"]}
        for rule in policy["spec"]["ingress"]
    )


@pytest.mark.parametrize(
    ("namespace", "http", "ops"),
    [
        ({"softspec-client": "true"}, True, False),
        ({"kubernetes.io/metadata.name": "monitoring"}, False, True),
        ({"kubernetes.io/metadata.name": NAMESPACE}, False, False),
        ({}, False, False),
    ],
    ids=["clients", "monitoring", "its own", "others"],
)
def test_only_labelled_namespaces_get_in(namespace: dict[str, str], http: bool, ops: bool) -> None:
    policy = only("NetworkPolicy", render("claim"))

    assert (is_admitted(policy, namespace, "http"), is_admitted(policy, namespace, "ops")) == (http, ops)


def test_nothing_goes_out_but_dns_and_what_the_operator_allows() -> None:
    closed, opened = (only("NetworkPolicy", render(example))["spec"] for example in ("claim", "oci"))
    dns, *allowed = opened["egress"]

    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert closed["egress"] == [dns]
    assert {each["port"] for each in dns["ports"]} == {53}
    assert (
        allowed
        == yaml.safe_load((EXAMPLES / "oci.yaml").read_text(encoding="utf-8"))["networkPolicy"]["egress"]
    )
