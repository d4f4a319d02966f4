"""The chart: helm accepts it, Kubernetes' schemas accept what it renders to, the driver accepts the configuration in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from csi.identity import DRIVER_NAME
from fuse.errors import WeightlessError
from fuse.mounting import selinux
from fuse.registry.hosts import load_access
from tests.deploy.chart import CASES, CHART, PROMETHEUS, ROOT, VALUES, Helm, Objects
from weightless import __version__, config

# Where helm has to be built first.
pytestmark = pytest.mark.timeout(600)

KUBERNETES = ("1.27", "1.34", "1.37")
"""The oldest that the chart is for, what is in wide use, the newest with schemas."""


@pytest.mark.parametrize("case", CASES)
def test_lint_has_no_complaint(helm: Helm, case: str) -> None:
    """Not even a warning."""
    answer = helm.run("lint", CHART, "--strict", "--kube-version=1.34", f"--values={VALUES / f'{case}.yaml'}")

    assert answer.returncode == 0, answer.stdout
    assert "[WARNING]" not in answer.stdout
    assert answer.stderr == ""


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_valid_for_kubernetes(helm: Helm, case: str, version: str) -> None:
    """Each object, with unknown fields forbidden; those of Prometheus Operator are not Kubernetes' own."""
    objects = helm.objects(case, kubernetes=version).all

    assert objects
    for each in objects:
        if each["apiVersion"] != PROMETHEUS:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_labelled_and_in_the_namespace(helm: Helm, case: str) -> None:
    """So that `helm uninstall` and a person find all of them; names occur once."""
    objects = helm.objects(case).all
    for each in objects:
        assert {"app.kubernetes.io/name", "app.kubernetes.io/component"} <= each["metadata"]["labels"].keys()
        assert each["metadata"].get("namespace") in (None, "weightless", "models", "registry")
    identities = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]

    assert sorted(set(identities), key=str) == sorted(identities, key=str)


@pytest.mark.parametrize("case", [case for case in CASES if case != "cleanup"])
def test_the_driver_reads_its_configuration(helm: Helm, case: str, tmp_path: Path) -> None:
    """What values say arrives in `weightless.config`, which refuses what it does not know."""
    found = _configurations(helm.objects(case), tmp_path)

    assert found["weightless.toml"].node.kubelet_dir == (
        "/var/lib/k0s/kubelet" if case == "full" else "/var/lib/kubelet"
    )


def test_every_value_arrives(full: Objects, tmp_path: Path) -> None:
    """Numbers as numbers, registries by their names, and the chart's own over them."""
    both = _configurations(full, tmp_path)
    plugin, controller = both["weightless.toml"], both["controller.toml"]

    assert (plugin.cache_dir, plugin.quota_bytes, plugin.cache.free_space) == ("/mnt/nvme/weightless", 500 * 10**9, 0.1)
    assert (plugin.prefetch, plugin.verify, plugin.log_level) == ("none", "strict", "debug")
    assert (plugin.fetch.connections, plugin.fetch.bytes_per_s) == (12, 10**9)
    assert plugin.fetch.registries["registry.example.com:5000"].bytes_per_s == 200_000_000
    assert (plugin.registry.offline, plugin.registry.offline_hours) == ("allow", 12.5)
    assert (plugin.mount.native, plugin.mount.without_resend) == ("off", "abort")
    assert plugin.node.keeper == "unix:///run/weightless-keeper/keeper.sock"
    assert plugin.certs_dir == controller.certs_dir == "/etc/weightless/certs.d"
    assert controller.cache_dir is None
    assert controller.node == config.NodeSection()


def test_openshift_has_the_label_of_containers(helm: Helm, full: Objects, tmp_path: Path) -> None:
    """Its nodes enforce SELinux. Elsewhere it is said, and `config` keeps what else it says of mounts."""
    assert _configurations(full, tmp_path)["weightless.toml"].mount.selinux_context == selinux.FOR_CONTAINERS
    assert full.one("CSIDriver")["spec"]["seLinuxMount"] is True

    own = "system_u:object_r:model_t:s0"
    said = helm.objects("full", f"seLinuxContext={own}")
    assert _configurations(said, tmp_path)["weightless.toml"].mount == config.MountSection(
        native="off", without_resend="abort", selinux_context=own
    )
    default = helm.objects("default")
    assert _configurations(default, tmp_path)["weightless.toml"].mount.selinux_context is None
    assert default.one("CSIDriver")["spec"]["seLinuxMount"] is False


def test_the_schema_knows_the_keys_of_the_configuration() -> None:
    """What `config` may have is what weightless.toml may have, but for what the chart writes itself."""
    written = {"cache-dir", "certs-dir", "cache", "node", "controller", "kubernetes", "credentials"}
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())
    known = {field.encode_name for field in msgspec.structs.fields(config.Config)}

    assert schema["properties"]["config"]["properties"].keys() == known - written


def test_every_value_of_the_schema_is_shown_with_its_default() -> None:
    """values.yaml is the list of what can be said: each key of the schema stands there, and none that it does not know."""
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())

    def differences(known: dict[str, Any], shown: dict[str, Any], path: str) -> list[str]:
        if "$ref" in known:
            known = schema["definitions"][known["$ref"].rpartition("/")[2]]
        properties = known.get("properties", {})
        found = [f"{path}{key}" for key in properties.keys() ^ shown.keys()] if properties else []
        for key in properties.keys() & shown.keys():
            if isinstance(shown[key], dict):
                found += differences(properties[key], shown[key], f"{path}{key}.")
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # Of charts that have this one in them; what `config` may have is in CONFIGURATION.md; resources are Kubernetes' own.
    free = re.compile(r"enabled|global|config\..*|.*resources\..*|seLinuxOptions\..*")
    assert [name for name in differences(schema, values, "") if not free.fullmatch(name)] == []


@pytest.mark.parametrize(
    "text",
    ["500GB", "500Gi", "1.5 TiB", "2g", "4096", "10B", "500GiB/s", "plenty", "1e9", "-1", "1.5.2GB", "5iB", "GB"],
)
def test_the_schema_knows_the_sizes_that_the_driver_knows(text: str) -> None:
    """A size that is let through and then not understood would be found out by plugins that do not start."""
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())["definitions"]

    def understood(**section: str) -> bool:
        try:
            parsed = config.Config(
                cache=config.CacheSection(quota=section.get("quota")),
                fetch=config.FetchSection(max_bandwidth=section.get("rate")),
            )
            _ = (parsed.quota_bytes, parsed.fetch.bytes_per_s)
        except WeightlessError:
            return False
        return True

    assert understood(quota=text) == _accepts(schema["size"], text)
    if text not in ("4096", "10B"):  # too little to read by
        assert understood(rate=text) == _accepts(schema["rate"], text)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("image.repositry=weightless", "repositry"),
        ("config.fetch.conections=8", "conections"),
        ("config.fetch.connections=0", "/config/fetch/connections"),
        ("config.node.endpoint=unix:///x.sock", "node"),
        ("cache.freeSpace=1", "/cache/freeSpace"),
        ("cache.quota=plenty", "/cache/quota"),
        ("cache.path=relative", "/cache/path"),
        ("kubeletDir=/var/lib/kubelet/", "/kubeletDir"),
        ("image.digest=sha256:short", "/image/digest"),
        ("architectures={riscv64}", "/architectures/0"),
        ("caBundle.configMap=Corporate_CA", "/caBundle/configMap"),
        ("credentials.allow={everybody}", "/credentials/allow/0"),
        ("credentials.tokenRequests[0].expirationSeconds=60", "/credentials/tokenRequests/0"),
        ("proxy.httpProxy=http://user:secret@proxy:3128", "/proxy/httpProxy"),
        ("node.maxUnavailable=0", "/node/maxUnavailable"),
        ("metrics.port=70000", "/metrics/port"),
        ("priorityClass.value=2000000000", "/priorityClass/value"),
        ("controller.replicas=0", "/controller/replicas"),
        ("seLinuxContext=container_file_t", "/seLinuxContext"),
        ("csiDriver.seLinuxMount=often", "/csiDriver/seLinuxMount"),
        ("storageClasses[0].name=x", "reference"),
        ("fullnameOverride=Model_Driver", "/fullnameOverride"),
        ("node.resources.limits.memory=true", "/node/resources/limits/memory"),
        ("controller.secretNamespaces={Models}", "/controller/secretNamespaces/0"),
        ("architectures=null", "architectures"),
        ("config=null", "config"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, setting: str, named: str) -> None:
    """A misspelt limit that is silently ignored is worse than a refusal."""
    answer = helm.template("default", setting)

    assert answer.returncode != 0
    assert named in answer.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["image.repository="], "set image.repository"),
        (["registries.nodeCertsDir=/etc/containerd/certs.d", r"registries.hosts.a\.example.hosts\.toml=x"], "not both"),
        (["credentials.providers.config=/etc/providers.yaml"], "credentials.providers.binDir"),
        (["priorityClass.create=true"], "begin with system-"),
    ],
)
def test_what_is_missing_is_said(helm: Helm, settings: list[str], words: str) -> None:
    answer = helm.template("default", *settings)

    assert answer.returncode != 0
    assert words in answer.stderr


def test_the_driver_object_is_the_documented_one(default: Objects) -> None:
    """The chart's, and the one of deploy/examples for those who write their own manifests."""
    example = yaml.safe_load((ROOT / "deploy" / "examples" / "csidriver.yaml").read_text())
    rendered = default.one("CSIDriver", DRIVER_NAME)

    assert rendered["spec"] == example["spec"]
    assert rendered["metadata"]["labels"].items() >= example["metadata"]["labels"].items()


@pytest.mark.parametrize(("kubernetes", "in_secrets"), [("1.34", None), ("1.35", True)])
def test_tokens_travel_as_secrets_where_kubernetes_can(helm: Helm, kubernetes: str, in_secrets: bool | None) -> None:
    """KEP-5538: since 1.35; an older API server refuses the field."""
    spec = helm.objects("full", kubernetes=kubernetes).one("CSIDriver")["spec"]

    assert spec["tokenRequests"] == [{"audience": "registry.example.com", "expirationSeconds": 3600}]
    assert spec["requiresRepublish"] is True
    assert spec.get("serviceAccountTokenInSecrets") == in_secrets


def test_an_upgrade_of_the_plugin_leaves_the_keeper_alone(helm: Helm) -> None:
    """Its pods go by hand only, and no selector, which cannot be changed, names a version."""
    before, after = (helm.objects("default", f"image.tag={tag}") for tag in ("v1", "v2"))
    keeper = before.one("DaemonSet", "weightless-keeper")["spec"]

    assert keeper["updateStrategy"] == {"type": "OnDelete"}
    assert before.pods()["weightless-node"] != after.pods()["weightless-node"]
    for each in before.all:
        if each["kind"] in ("DaemonSet", "Deployment"):
            labels = each["spec"]["selector"]["matchLabels"]
            assert labels.keys() == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}


def test_a_changed_configuration_restarts_the_plugin(helm: Helm) -> None:
    """A ConfigMap that changes restarts nothing by itself."""
    before, after = (helm.objects("default", f"cache.quota={size}") for size in ("1GB", "2GB"))

    def annotations(objects: Objects, kind: str, name: str) -> Any:
        return objects.one(kind, name)["spec"]["template"]["metadata"]["annotations"]

    assert annotations(before, "DaemonSet", "weightless-node") != annotations(after, "DaemonSet", "weightless-node")
    assert annotations(before, "Deployment", "weightless-controller") == annotations(
        after, "Deployment", "weightless-controller"
    )


def test_files_of_registries_are_where_the_driver_looks(full: Objects, tmp_path: Path) -> None:
    """The Secret, laid out as kubelet does, is a directory that names the mirrors before the registry."""
    secret = full.one("Secret", "weightless-registries")["stringData"]
    for name in ("weightless-node", "weightless-controller"):
        (volume,) = [each["secret"] for each in full.pods()[name]["volumes"] if each["name"] == "certs"]
        root = tmp_path / name
        for item in volume["items"]:
            path = root / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secret[item["key"]])
        assert len(volume["items"]) == len(secret) == 3
        for host, mirror in (("registry.example.com:5000", "127.0.0.1:4001"), ("other.example.com", "10.0.0.7:30020")):
            access = load_access(
                host, certs_dir=root, plain_http=False, credential=lambda _host: None, local_allowed=False
            )
            assert [each.url.split("/")[2] for each in access.endpoints] == [mirror, host]


def test_what_needs_a_custom_resource_is_left_out_without_it(helm: Helm) -> None:
    """No PodMonitor, and no rules, where the API server would refuse them."""
    assert len(helm.objects("default").of("PodMonitor")) == 1
    without = helm.objects("full", has=())
    assert without.of("PodMonitor") == without.of("PrometheusRule") == []


def test_no_pod_is_meant_for_a_node_that_cannot_run_it(helm: Helm) -> None:
    """Whatever affinity the values have, none for Windows; by default none for nodes that a DaemonSet would wait for in vain."""
    for case in CASES:
        for pod in helm.objects(case).pods().values():
            assert pod["nodeSelector"]["kubernetes.io/os"] == "linux"
    assert helm.objects("full").pods()["weightless-node"]["nodeSelector"]["example.com/gpu"] == "true"
    (term,) = helm.objects("default").pods()["weightless-node"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    refused = {each["key"]: each["values"] for each in term["matchExpressions"] if each["operator"] == "NotIn"}
    assert refused == {"eks.amazonaws.com/compute-type": ["fargate"], "type": ["virtual-kubelet"]}


def test_common_labels_are_of_pods_too(full: Objects) -> None:
    """For costs by team; selectors, which cannot be changed, have none of them."""
    for each in full.all:
        assert each["metadata"]["labels"]["team"] == "platform"
        if each["kind"] in ("DaemonSet", "Deployment"):
            assert each["spec"]["template"]["metadata"]["labels"]["team"] == "platform"
            assert "team" not in each["spec"]["selector"]["matchLabels"]


def test_the_corporate_authority_is_trusted_by_all_that_ask_registries(full: Objects, default: Objects) -> None:
    """Plugin and controller, whose children inherit it: SSL_CERT_FILE is read beside the image's own directory."""
    for name in ("weightless-node", "weightless-controller"):
        container = full.containers()[name, "weightless"]
        (file,) = [each["value"] for each in container["env"] if each["name"] == "SSL_CERT_FILE"]
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "ca"]
        (volume,) = [each for each in full.pods()[name]["volumes"] if each["name"] == "ca"]
        (item,) = volume["configMap"]["items"]
        assert (volume["configMap"]["name"], item["key"]) == ("corporate-ca", "ca-bundle.crt")
        assert file == f"{mount['mountPath']}/{item['path']}"
    assert "SSL_CERT_FILE" not in str(default.all)


def test_a_cache_may_wait_for_its_disk(full: Objects, default: Objects) -> None:
    """A path that has to be there is not made on the root disk of a node whose own is mounted late."""

    def kind(objects: Objects) -> Any:
        (volume,) = [each for each in objects.pods()["weightless-node"]["volumes"] if each["name"] == "cache"]
        return volume["hostPath"]["type"]

    assert (kind(default), kind(full)) == ("DirectoryOrCreate", "Directory")


def test_a_drain_leaves_one_controller(helm: Helm, default: Objects) -> None:
    """Of several; a single one keeps no node from being drained."""
    (budget,) = default.of("PodDisruptionBudget")
    selector = default.one("Deployment")["spec"]["selector"]

    assert (budget["spec"]["maxUnavailable"], budget["spec"]["selector"]) == (1, selector)
    assert helm.objects("default", "controller.replicas=1").of("PodDisruptionBudget") == []


def test_it_can_be_a_part_of_another_chart(helm: Helm, tmp_path: Path) -> None:
    """With a condition, which arrives as a value of this chart."""
    dependency = {
        "name": "weightless",
        "version": yaml.safe_load((CHART / "Chart.yaml").read_text())["version"],
        "condition": "weightless.enabled",
    }
    platform = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(platform))
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "weightless").symlink_to(CHART)
    answer = helm.run(
        "template", "x", tmp_path, "--kube-version=1.34", "--set=weightless.enabled=true,weightless.image.repository=y"
    )

    assert answer.returncode == 0, answer.stderr
    assert "kind: CSIDriver" in answer.stdout


def test_the_dashboard_is_given_to_grafana(helm: Helm) -> None:
    """Where Grafana's sidecar looks."""
    source = CHART / "dashboards" / "weightless.json"
    (found,) = helm.objects("default", "metrics.dashboard.enabled=true").of("ConfigMap", "weightless-dashboard")

    assert msgspec.json.decode(found["data"]["weightless.json"]) == msgspec.json.decode(source.read_bytes())
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_plugin_can_be_told_apart_and_found(full: Objects) -> None:
    """Node network, architecture, proxies, image by digest: what the values said is in the pod."""
    pod = full.pods()["weightless-node"]
    plugin = full.containers()["weightless-node", "weightless"]
    environment = {each["name"]: each.get("value") for each in plugin["env"]}
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]} in term["matchExpressions"]
    assert environment["NO_PROXY"] == "10.0.0.0/8,.svc"
    assert environment["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    assert re.fullmatch(r"registry\.example\.com:5000/platform/weightless@sha256:[0-9a-f]{64}", plugin["image"])
    assert plugin["args"] == ["csi", "--mode", "node", "--log-level", "debug"]


def test_registrar_and_plugin_mean_the_same_socket(full: Objects) -> None:
    """kubelet is told the path on the node."""
    plugin = full.containers()["weightless-node", "weightless"]
    registrar = full.containers()["weightless-node", "registrar"]
    (endpoint,) = [each["value"] for each in plugin["env"] if each["name"] == "CSI_ENDPOINT"]

    assert endpoint == f"unix:///var/lib/k0s/kubelet/plugins/{DRIVER_NAME}/csi.sock"
    assert f"--kubelet-registration-path={endpoint.removeprefix('unix://')}" in registrar["args"]


def test_the_provisioner_is_the_one_that_a_real_cluster_was_seen_with() -> None:
    """`make cluster-test` builds it from its module, and runs it under the name that the chart has."""
    modules = (ROOT / "tests" / "cluster" / "modules" / "sidecars" / "go.mod").read_text()
    (seen,) = re.findall(r"kubernetes-csi/external-provisioner/v\d+ (v\S+)", modules)

    assert yaml.safe_load((CHART / "values.yaml").read_text())["sidecars"]["provisioner"]["image"]["tag"] == seen


def test_chart_and_program_have_one_version() -> None:
    """The image's tag is the chart's appVersion."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def _accepts(definition: dict[str, Any], text: str) -> bool:
    (pattern,) = (one["pattern"] for one in definition["oneOf"] if "pattern" in one)
    return re.search(pattern, text) is not None


def _configurations(objects: Objects, directory: Path) -> dict[str, config.Config]:
    found = {}
    for name, text in objects.one("ConfigMap", "weightless")["data"].items():
        file = directory / name
        file.write_text(text)
        found[name] = config.load(file)
    return found
