"""What other serving engines get, by their own schemas

Triton's parses the repository, which ONNX Runtime runs; Kubernetes' take the manifests.
"""

import json
import subprocess
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import typer
import xarray as xr
import yaml
from conftest import tool
from typer.testing import CliRunner

import scalai_nb as sn
from scalai_nb.commands.export import export as command
from scalai_nb.commands.serve import serve
from scalai_nb.errors import Conflict, ModelMismatch, ParameterError
from scalai_nb.models.package.runtime import session
from scalai_nb.serving.door.tokens import new_token
from scalai_nb.export import targets
from scalai_nb.export.targets import MARK, export


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "temp": ("row", rng.normal(50, 20, 400)),
            'a "b"\\c': ("row", rng.integers(5, 23, 400)),
            "at": ("row", np.datetime64("2013-01-01", "s") + rng.integers(0, 10**7, 400)),
            "carrier": ("row", rng.choice(np.array(["AA", "Ü", None], object), 400)),
            "late": ("row", rng.random(400) < 0.3),
        }
    )


@pytest.fixture(scope="module")
def model(data):
    t = sn.Transform(["temp", "at", 'a "b"\\c'], ["carrier"]).fit(data)
    return sn.package(
        t,
        sn.LogisticRegression().fit(t.transform(data), data.late.values),
        sn.Contract.infer(data, label="late"),
        name="late",
    )


@pytest.fixture
def version(registry, model):
    return registry.register(model, "Late_Flight", alias="champion")


# ---- Triton

PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
text = open(sys.argv[1], encoding="utf-8").read()
print(json_format.MessageToJson(text_format.Parse(text, model_config_pb2.ModelConfig()), \
preserving_proto_field_name=True))
"""


def parsed(path) -> dict:
    "The configuration as Triton's own schema reads it"
    return json.loads(
        subprocess.run(
            [tool("clients") / "python", "-c", PARSE, path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.parametrize("gpu", [False, True])
def test_triton_reads_the_configuration(version, tmp_path, gpu):
    export("triton", version, tmp_path, gpu=gpu, instances=2, batch=64)
    config = parsed(tmp_path / "Late_Flight/config.pbtxt")
    assert {i["name"]: i["data_type"] for i in config["input"]} == {
        "temp": "TYPE_FP32",
        "at": "TYPE_FP64",
        'a "b"\\c': "TYPE_FP32",
        "carrier": "TYPE_STRING",
    }
    assert (
        config["name"] == "Late_Flight"
        and config["backend"] == "onnxruntime"
        and config["max_batch_size"] == 64
    )
    assert config["output"] == [{"name": "score", "data_type": "TYPE_FP32", "dims": ["1"]}]
    assert config["instance_group"] == [{"kind": "KIND_GPU" if gpu else "KIND_CPU", "count": 2}]
    assert (
        config["version_policy"] == {"specific": {"versions": ["1"]}}
        and "dynamic_batching" in config
    )
    (warmup,) = config["model_warmup"]
    assert set(warmup["inputs"]) == {i["name"] for i in config["input"]}
    assert all(
        (tmp_path / "Late_Flight/warmup" / x["input_data_file"]).exists()
        for x in warmup["inputs"].values()
    )


def test_the_graph_runs_as_the_configuration_says_and_the_warm_up_is_the_first_example(
    version, model, tmp_path
):
    export("triton", version, tmp_path)
    config, folder = parsed(tmp_path / "Late_Flight/config.pbtxt"), tmp_path / "Late_Flight"
    graph = session((folder / "1/model.onnx").read_bytes())
    kinds = {
        "TYPE_FP32": ("tensor(float)", np.float32),
        "TYPE_FP64": ("tensor(double)", np.float64),
        "TYPE_STRING": ("tensor(string)", None),
    }
    files, feed = config["model_warmup"][0]["inputs"], {}
    assert {i.name: (i.type, i.shape[1:]) for i in graph.get_inputs()} == {
        i["name"]: (kinds[i["data_type"]][0], [int(d) for d in i["dims"]]) for i in config["input"]
    }
    assert [(o.name, o.shape[1:]) for o in graph.get_outputs()] == [("score", [1])]
    for name, x in files.items():
        raw, dtype = (
            (folder / "warmup" / x["input_data_file"]).read_bytes(),
            kinds[x["data_type"]][1],
        )
        feed[name] = (
            np.frombuffer(raw, dtype).reshape(1, 1)
            if dtype
            else np.array([[raw[4:].decode()]], object)
        )
        assert dtype or int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert np.isclose(graph.run(["score"], feed)[0].item(), model.examples["scores"][0], atol=1e-6)


def test_a_new_version_comes_beside_the_old_and_moves_the_policy(
    registry, model, version, tmp_path
):
    for v in (version, registry.register(model, "Late_Flight")):
        export("triton", v, tmp_path)
    assert {p.name for p in (tmp_path / "Late_Flight").iterdir()} == {
        "1",
        "2",
        "config.pbtxt",
        "warmup",
    }
    assert b"versions: [ 2 ]" in (tmp_path / "Late_Flight/config.pbtxt").read_bytes()


def test_a_package_that_was_changed_is_not_exported(version, tmp_path):
    (version.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelMismatch, match="model.onnx is not the file that was packaged"):
        export("triton", version, tmp_path)
    assert not list(tmp_path.glob("Late_Flight/**"))


# ---- manifests


def documents(path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_kubernetes_takes_the_manifest(version, tmp_path):
    (path,) = export("kubernetes", version, tmp_path, monitor=True)
    found = documents(path)
    assert [d["kind"] for d in found] == [
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ServiceMonitor",
    ]
    path.write_text(yaml.safe_dump_all(found[:-1]))  # the last is not Kubernetes' own
    done = subprocess.run(
        [tool("manifests") / "kubernetes-validate", "--strict", path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_parts_of_the_manifest_belong_together(version, tmp_path):
    (path,) = export(
        "kubernetes", version, tmp_path, ref="challenger", replicas=3, most=7, workers=4, queue=9
    )
    deployment, service, scaler, budget, policy = documents(path)
    labels, pod = (
        deployment["spec"]["template"]["metadata"]["labels"],
        deployment["spec"]["template"]["spec"],
    )
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    assert (
        "app" in labels and labels["app"] != "scalai"
    )  # the policy of the Dask cluster would shut clients out
    (container,) = pod["containers"]
    assert {p["port"] for r in policy["spec"]["ingress"] for p in r["ports"]} == {
        p["containerPort"] for p in container["ports"]
    }
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (
        scaler["spec"]["minReplicas"],
        scaler["spec"]["maxReplicas"],
        scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"],
    ) == (3, 7, "9")
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    drain = int(container["command"][container["command"].index("--drain") + 1])
    assert pod["terminationGracePeriodSeconds"] > drain + int(
        container["lifecycle"]["preStop"]["exec"]["command"][1]
    )
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {"tls": "scalai-tls", "tokens": "scalai-tokens"}
    places = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in secrets}
    told = {w.rpartition("/")[0] for w in container["command"] if w.startswith("/etc/")}
    assert places == told and all(
        container[p]["httpGet"]["scheme"] == "HTTPS" for p in container if p.endswith("Probe")
    )
    security = container["securityContext"]
    assert (
        security["readOnlyRootFilesystem"]
        and security["capabilities"] == {"drop": ["ALL"]}
        and pod["securityContext"]["runAsNonRoot"]
    )


def test_scalai_serves_what_the_pods_are_told_to(scalai, version, tmp_path):
    mounted = tmp_path / "etc"
    mounted.mkdir()
    names = "-subj", "/CN=x", "-out", str(mounted / "tls.crt"), "-keyout", str(mounted / "tls.key")
    new = "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"
    subprocess.run([*new, "-nodes", *names], check=True, capture_output=True)
    new_token(mounted / "tokens.json", "a", ["predict"])
    deployment, *_ = documents(*export("kubernetes", version, tmp_path))
    runtime, service = documents(export("kserve", version, tmp_path)[0])
    kserve = runtime["spec"]["containers"][0]
    for words in (
        deployment["spec"]["template"]["spec"]["containers"][0]["command"],
        [*kserve["command"], *kserve["args"], *service["spec"]["predictor"]["model"]["args"]],
    ):
        assert words[:2] == ["scalai", "serve"]
        words = [str(mounted / w.rpartition("/")[2]) if "/etc/" in w else w for w in words]
        done = scalai(*words[2:], "--dry-run", command=serve)
        assert (
            done.exit_code == 0
            and "https://127.0.0.1:8080/docs" in done.output
            and "Late_Flight" in done.output
        ), done


FIELDS = """
import json, sys, kserve
def check(model, x, where):
    "Every field is one that the class knows"
    known = {v: k for k, v in model.attribute_map.items()}
    for name, value in x.items():
        assert name in known, f"{where}.{name} is not a field of {model.__name__}"
        kind = model.openapi_types[known[name]].removeprefix("list[").removesuffix("]")
        inner = getattr(kserve, kind, None)
        for one in (value if isinstance(value, list) else [value]) if inner else (): \
check(inner, one, f"{where}.{name}")
for x in json.load(sys.stdin):
    try: check({"ServingRuntime": kserve.V1alpha1ServingRuntime, \
"InferenceService": kserve.V1beta1InferenceService}[x["kind"]], x, x["kind"])
    except AssertionError as e: print(e)
"""


def test_kserve_knows_every_field(version, tmp_path):
    found = [d for path in export("kserve", version, tmp_path) for d in documents(path)]
    assert [d["kind"] for d in found] == ["ServingRuntime", "InferenceService", "InferenceService"]
    runtime, own, _ = found
    wrong = {"kind": "InferenceService", "spec": {"predictor": {"model": {"storageUrl": "x"}}}}
    done = subprocess.run(
        [tool("clients") / "python", "-W", "ignore", "-c", FIELDS],
        input=json.dumps([*found, wrong]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        done.stdout
        == "InferenceService.spec.predictor.model.storageUrl is not a field of V1beta1ModelSpec\n"
    )
    assert own["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    assert (
        own["spec"]["predictor"]["model"]["modelFormat"]["name"]
        == runtime["spec"]["supportedModelFormats"][0]["name"]
    )


@pytest.mark.parametrize("name", ["A_b.C", "x" * 80, "_", "9.-"])
def test_any_name_of_a_model_is_a_name_for_kubernetes(name):
    from scalai_nb.export.kubernetes import called

    found = called(SimpleNamespace(name=name))
    assert (
        len(found) <= 50
        and found[0].isalpha()
        and found[-1].isalnum()
        and found.replace("-", "a").isalnum()
        and found.islower()
    )


# ---- files


def test_what_was_changed_by_hand_is_not_written_over(version, tmp_path):
    (path,) = export("kubernetes", version, tmp_path)
    export("kubernetes", version, tmp_path, replicas=5)
    assert "replicas: 5" in path.read_text()
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(
        Conflict,
        match="serve-late-flight.yaml in .* was not written by an export, or changed since",
    ):
        export("kubernetes", version, tmp_path)
    assert path.read_text().endswith("# mine\n")
    export("kubernetes", version, tmp_path, force=True)
    (tmp_path / MARK).unlink()
    with pytest.raises(Conflict):
        export("kubernetes", version, tmp_path, replicas=9)
    export("kubernetes", version, tmp_path)  # it is what would be written


def test_a_target_can_be_added(version, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "TARGETS", dict(targets.TARGETS))
    targets.register("mine", __name__)
    options = targets.parsed("mine", ["end=."])
    assert export("mine", version, tmp_path, **options)[0].read_text() == "Late_Flight@1."


@dataclass(frozen=True)
class Options:
    end: str = ""


def files(v, options):
    return {"name.txt": f"{v}{options.end}".encode()}


# ---- the command


@pytest.fixture
def scalai(registry, version, tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(
        f"[laptop]\nmodels = {registry.env.models}\ntracking = {registry.env.tracking}\n"
    )
    monkeypatch.setenv("SCALAI_SETTINGS", str(tmp_path / "settings.ini"))

    def call(*words, command=command):
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, [str(w) for w in words])

    return call


def test_the_command(scalai, tmp_path):
    done = scalai(
        "kubernetes", "Late_Flight@1", "--to", tmp_path / "k", "--set", "replicas=3", "--dry-run"
    )
    assert (
        done.exit_code == 0
        and "would write" in done.output
        and "replicas: 3" in done.output
        and "Late_Flight@1" in done.output
        and not (tmp_path / "k").exists()
    )
    done = scalai("triton", "Late_Flight@champion", "--to", tmp_path / "t")
    assert done.exit_code == 0 and (tmp_path / "t/Late_Flight/1/model.onnx").exists()
    assert (
        "max_batch_size"
        in scalai("triton", "Late_Flight", "--to", tmp_path / "t", "--dry-run").output
    )
    for words, error, text in (
        (("kubernets", "Late_Flight"), ParameterError, "Did you mean 'kubernetes'"),
        (("triton", "Late_Flight", "--set", "gpus=true"), ParameterError, "Did you mean 'gpu'"),
        (("triton", "Late_Flight", "--set", "gpu=yes"), ParameterError, "true or false"),
    ):
        found = scalai(*words, "--to", tmp_path / "x").exception
        assert isinstance(found, error) and text in str(found)
