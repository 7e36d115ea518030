"""The files for Kubernetes and SkyPilot, by the schemas of installed packages and by hand."""

import re
import subprocess

import pytest
import yaml
from checkouts import PYTHON, ROOT, calls, environment, make_checkout, stand_in


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def jobset():
    [one] = yaml.safe_load_all((ROOT / "launch" / "kubernetes" / "jobset.yaml").read_text())
    return one


def test_kubernetes_accepts_job_and_pod(jobset):
    kubernetes = pytest.importorskip("kubernetes_validate")
    [workers] = jobset["spec"]["replicatedJobs"]
    template = workers["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "workers"}, **template}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}}
    pod |= template["spec"]["template"]
    for version in ("1.31", "1.36"):
        kubernetes.validate(job, version, strict=True)
        kubernetes.validate(pod, version, strict=True)
    job["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job, "1.36", strict=True)


def test_jobset_fields(jobset):
    """By JobSet's API reference, v1alpha2: the fields in use, and names that have to agree."""
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert set(spec) == {"network", "coordinator", "failurePolicy", "replicatedJobs"}
    [workers] = spec["replicatedJobs"]
    assert set(workers) == {"name", "replicas", "template"} and workers["replicas"] == 1
    assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert spec["coordinator"] == {"replicatedJob": workers["name"], "jobIndex": 0, "podIndex": 0}
    assert set(spec["failurePolicy"]) == {"maxRestarts", "rules"}
    [rule] = spec["failurePolicy"]["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule.pop("name"))
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    # A pod's name, JOBSET-JOB-INDEX-INDEX and a suffix, is a DNS label.
    assert len(f"{jobset['metadata']['name']}-{workers['name']}-0-000-abcde") <= 63


def test_kubernetes_restarts_on_75_and_not_on_2(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    actions = {}
    for rule in job["podFailurePolicy"]["rules"]:
        on = rule.get("onExitCodes", {"values": ["disruption"], "operator": "In"})
        assert on["operator"] == "In" and on.get("containerName", "train") == container["name"]
        actions |= dict.fromkeys(on["values"], rule["action"])
    assert actions == {2: "FailJob", 75: "Ignore", "disruption": "Ignore"}
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"


def test_kubernetes_declares_the_cluster(jobset):
    """As `distributed.initialize` reads it, of as many processes as there are pods."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    given = {
        one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in container["env"]
    }
    assert job["completionMode"] == "Indexed"
    assert given["JAX_NUM_PROCESSES"] == str(job["completions"]) == str(job["parallelism"])
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert given["JAX_PROCESS_ID"] == index
    # A variable is replaced in those that stand behind it.
    assert list(given).index("COORDINATOR") < list(given).index("JAX_COORDINATOR_ADDRESS")
    assert given["COORDINATOR"] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
    [port] = container["ports"]
    assert given["JAX_COORDINATOR_ADDRESS"] == f"$(COORDINATOR):{port['containerPort']}"


def test_a_pod_trains(jobset, checkout):
    """The container's command, run for real with /opt elsewhere: its arguments arrive."""
    [container] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    installed = checkout.parent / "opt"
    installed.mkdir()
    checkout.rename(checkout.parent / "jtcse_jax")
    script, *arguments = container["args"]
    done = subprocess.run(
        [*container["command"], script.replace("/opt", str(installed)), *arguments, "--seed", "1"],
        cwd=checkout.parent,
        env=environment(checkout, {"JTCSE_INSTALL": "no"}),
    )
    assert done.returncode == 0
    config = "--config jtcse_jax/configs/smoke.py"
    assert calls(checkout) == [f"-m jtcse_jax.train {config} --data.cache-dir cache --seed 1"]
    assert (ROOT / config.split("jtcse_jax/")[1]).exists()


SKYPILOT = ROOT / "launch" / "skypilot.yaml"


def test_skypilot_accepts_the_task():
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml(str(SKYPILOT))
    [resources] = task.resources
    assert resources.use_spot and resources.job_recovery["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize(
    "nodes, declared", [("1", "unset"), ("2", "10.0.0.1:8476 2 1")], ids=["one", "two"]
)
def test_skypilot_trains_in_the_bucket(checkout, nodes, declared):
    task = yaml.safe_load(SKYPILOT.read_text())
    [bucket] = task["file_mounts"]
    variables = "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    seen = f'echo "${{JAX_NUM_PROCESSES+{variables}}}" >>"$CALLS"'
    stand_in(checkout / ".venv" / "bin" / "python", f"{seen}\n{PYTHON}")
    settings = {"SKYPILOT_NUM_NODES": nodes, "SKYPILOT_NODE_RANK": "1", **task["envs"]}
    settings["SKYPILOT_NODE_IPS"] = "10.0.0.1\n10.0.0.2"
    settings["ARGUMENTS"] = "--seed 1"
    done = subprocess.run(
        ["bash", "-c", task["run"]], cwd=checkout, env=environment(checkout, settings)
    )
    assert done.returncode == 0
    cluster, training = calls(checkout)
    assert (cluster or "unset") == declared
    workdir = f"--workdir {bucket}/smoke"
    assert training == f"-m jtcse_jax.train --config configs/smoke.py {workdir} --seed 1"
