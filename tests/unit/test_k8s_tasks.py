"""What the tasks for images and clusters would do: shown by a dry run, done through kubectl, answered with clear errors.

No cluster can be had in a test; a program named kubectl that writes down what it was asked stands in for one.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labkit import __version__
from labkit.containers import images
from labkit.containers.cluster import Cluster, PodName
from labkit.containers.job import JobNotFinished, JobWatch
from labkit.containers.manifests import Rendering
from labkit.containers.shell import CommandFailed, MissingTool, Shell
from labkit.errors import LabkitError, ParameterError

ROOT = Path(__file__).parents[2]
TASK = Path(sys.prefix) / "bin/task"
TASKS = yaml.safe_load((ROOT / "Taskfile.yml").read_text())["tasks"]
ON_CLUSTER = (
    *("deploy-k8s", "deploy-bpftool", "deploy-monitoring", "deploy-ballast", "deploy-stressor"),
    *("undeploy-k8s", "k8s-lab", "k8s-notebook"),
)

KUBECTL = """#!/bin/sh
# Writes down what it was asked, each argument in quotes. What changes with time (a pod that begins, a Job that ends) is
# a list of words, of which each question takes one; the last one stays.
{ printf "'%s' " "$@"; echo; } >>"$KUBECTL_LOG"
next() { # of the list $2, kept under the name $1
    [ -e "$KUBECTL_LOG.$1" ] || printf '%s' "$2" >"$KUBECTL_LOG.$1"
    read -r now later <"$KUBECTL_LOG.$1"
    printf '%s\n' "$now" >"$KUBECTL_LOG.$1.now"
    [ -z "$later" ] || printf '%s\n' "$later" >"$KUBECTL_LOG.$1"
}
condition() { printf '{"type": "%s", "status": "%s", "reason": "%s", "message": "%s"}' "$@"; }
pod() { # phase, more of the status
    printf '{"items": [{"status": {"phase": "%s"%s}}]}' "$1" "${2:+, $2}"
}
case "$*" in
    *"get pods --selector job-name="*)
        next pods "${ANSWER_PODS:-running}"
        waits='"containerStatuses": [{"state": {"waiting": {"reason": "%s"}}}]'
        case $now in
            none) echo '{"items": []}' ;;
            unscheduled)
                why=$(condition PodScheduled False Unschedulable '0/3 nodes')
                pod Pending "$(printf '"conditions": [%s]' "$why")" ;;
            creating) pod Pending "$(printf "$waits" ContainerCreating)" ;;
            badname) pod Pending "$(printf "$waits" InvalidImageName)" ;;
            away) echo 'The connection to the server was refused' >&2; exit 1 ;;
            running) pod Running ;;
            succeeded) pod Succeeded ;;
        esac ;;
    *"logs --follow"*)
        read -r now <"$KUBECTL_LOG.pods.now"
        case $now in
            running | succeeded) echo "the lab's log" ;;
            # kubectl 1.32 says so and ends, whatever --pod-running-timeout is.
            *) echo 'container "lab" in pod "labkit-lab-x" is waiting to start: ContainerCreating' >&2; exit 1 ;;
        esac ;;
    *"get job "*)
        next job "${ANSWER_JOB:-complete}"
        case $now in
            open) found= ;;
            suspended) found=$(condition Suspended False '' '') ;;
            complete) found=$(condition Complete True '' '') ;;
            failed) found=$(condition Failed True BackoffLimitExceeded 'Job has reached the specified backoff limit') ;;
        esac
        printf '{"spec": {"activeDeadlineSeconds": %s}, "status": {"conditions": [%s]}}' "${ANSWER_LIMIT:-3600}" "$found" ;;
    *"apply -f -"*) { cat; echo; echo ---; } >>"$KUBECTL_LOG.applied" ;;
    kustomize*) exec "$REAL_KUBECTL" "$@" ;;
    *.spec.nodeName*)
        [ "$ANSWER_NODE" != fail ] || { echo 'pods "x" not found' >&2; exit 1; }
        printf '%s' "$ANSWER_NODE" ;;
    *labkit-exporter*items*) printf '%s' "$ANSWER_EXPORTER" ;;
    *current-context*) echo test-cluster ;;
    *" exec "*) echo '{"mode": "live"}' ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that writes down; returns its log."""
    path = tmp_path / "bin/kubectl"
    path.parent.mkdir()
    path.write_text(KUBECTL)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "log"
    log.touch()
    real = subprocess.run(["sh", "-c", "command -v kubectl"], capture_output=True, text=True, check=False)
    monkeypatch.setenv("REAL_KUBECTL", real.stdout.strip() or "kubectl-is-missing")
    monkeypatch.setenv("KUBECTL_LOG", str(log))
    monkeypatch.setenv("ANSWER_NODE", "node-7")
    monkeypatch.setenv("ANSWER_EXPORTER", "labkit-exporter-abcde")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return log


def _task(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    # No kubectl, docker or gcloud on the path: a dry run starts none of them.
    env = {"PATH": f"{sys.prefix}/bin:/nowhere", "HOME": os.environ.get("HOME", "/")} | settings
    argv = [str(TASK), "--silent", "--exit-code", "--taskfile", str(ROOT / "Taskfile.yml"), *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ON_CLUSTER)
def test_a_dry_run_shows_every_command_and_starts_none(name: str) -> None:
    done = _task(name, "PROJECT=my-project", "--", "--dry")
    assert done.returncode == 0, done.stderr
    assert "\n+ kubectl " in f"\n{done.stdout}"


def test_deploy_has_the_spelling_of_an_old_readme_too() -> None:
    old, new = (_task(name, "PROJECT=p", "--", "--dry").stdout for name in ("deloy-k8s", "deploy-k8s"))
    assert old == new != ""


NEED_IMAGES = ("deploy-k8s", "deploy-ballast", "deploy-stressor", "k8s-lab", "k8s-notebook")


@pytest.mark.parametrize("name", NEED_IMAGES)
def test_images_of_this_machine_are_refused_for_a_cluster_but_kind(name: str) -> None:
    done = _task(name, "--", "--dry")
    assert done.returncode == 2
    assert "cannot pull localhost/labkit-exporter" in done.stderr
    assert "PROJECT=" in done.stderr
    assert "OVERLAY=kind" in done.stderr
    assert "+ kubectl" not in done.stdout
    assert _task(name, "OVERLAY=kind", "--", "--dry").returncode == 0


@pytest.mark.parametrize("name", sorted(set(ON_CLUSTER) - set(NEED_IMAGES)))
def test_what_needs_no_image_of_the_lab_needs_no_registry(name: str) -> None:
    assert _task(name, "--", "--dry").returncode == 0


def test_build_and_push_in_one_go() -> None:
    settings = ("PROJECT=p", "REGION=europe-west4", "REPOSITORY=r", "TAG=1.2", "BUILDER=podman")
    done = _task("local-build-push", *settings, "--", "--dry")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1:3] for line in lines] == [["podman", "build"]] * 3 + [["podman", "push"]] * 3
    names = [f"europe-west4-docker.pkg.dev/p/r/labkit-{target}:1.2" for target in images.TARGETS]
    assert [line[-1] for line in lines[3:]] == names
    assert all(name in line for name, line in zip(names, lines[:3], strict=True))


def test_without_a_registry_nothing_is_pushed() -> None:
    done = _task("local-build-push", "--", "--dry", "--target", "tools")
    assert done.returncode == 0, done.stderr
    assert f"--tag localhost/labkit-tools:{__version__}" in done.stdout
    assert " push " not in done.stdout


def test_arguments_of_the_builder_are_handed_on() -> None:
    arguments = "--network host --volume '/a b:/c'"
    done = _task("local-build-push", f"BUILD_ARGS={arguments}", "--", "--dry", "--target", "tools")
    assert arguments in done.stdout


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("docker", ["+ gcloud auth configure-docker europe-west1-docker.pkg.dev --quiet"]),
        (
            "podman",
            [
                "+ gcloud auth print-access-token   # gives TOKEN",
                "+ podman login --username oauth2accesstoken --password-stdin europe-west1-docker.pkg.dev   "
                "# the token goes in on standard input",
            ],
        ),
    ],
)
def test_login_to_artifact_registry(builder: str, expected: list[str]) -> None:
    done = _task("docker-auth", "PROJECT=p", f"BUILDER={builder}", "--", "--dry")
    assert done.stdout.splitlines() == expected


def test_login_to_another_registry_is_its_own_affair() -> None:
    done = _task("docker-auth", "IMAGES=registry.example/lab", "--", "--dry")
    assert done.returncode == 2
    assert "docker login registry.example" in done.stderr


def test_the_answer_for_a_pod_comes_from_the_exporter_on_its_node(
    kubectl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Cluster(Shell(), {}).noisy(PodName.parse("shop/cart-1"), 12.5, "--json")
    node, exporter, asked = kubectl.read_text().splitlines()
    assert "'--namespace' 'shop' 'get' 'pod' 'cart-1'" in node
    assert "'spec.nodeName=node-7,status.phase=Running'" in exporter
    assert asked.split() == [
        *(
            "'--namespace'",
            "'labkit'",
            "'exec'",
            "'labkit-exporter-abcde'",
            "'--container'",
            "'exporter'",
            "'--'",
        ),
        *("'labkit'", "'noisy'", "'--pod'", "'shop/cart-1'", "'--seconds'", "'12.5'", "'--json'"),
    ]
    out, err = capfd.readouterr()
    assert json.loads(out) == {"mode": "live"}, "the answer alone is on standard output"
    assert "+ kubectl" in err


def test_a_pod_on_a_node_without_exporter_says_what_to_do(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER_EXPORTER", "")
    with pytest.raises(LabkitError, match="no exporter runs on node-7") as caught:
        Cluster(Shell(), {}).noisy(PodName.parse("shop/cart-1"), 5)
    assert "./task deploy-k8s" in caught.value.remedy


def test_a_pod_that_waits_for_a_node_is_told_apart(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER_NODE", "")
    with pytest.raises(LabkitError, match="runs on no node yet"):
        Cluster(Shell(), {}).noisy(PodName.parse("shop/cart-1"), 5)


def test_a_pod_that_is_not_there_is_told_in_the_words_of_kubectl(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER_NODE", "fail")
    with pytest.raises(CommandFailed, match='pods "x" not found'):
        Cluster(Shell(), {}).noisy(PodName.parse("shop/x"), 5)


@pytest.mark.parametrize("text", ["", "a/b/c", "/b", "a/", "A/b", "a b", "-x/y", "x/--all", "a/b;c", "../x"])
def test_what_names_no_pod_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        PodName.parse(text)


def test_a_pod_without_a_namespace_is_in_the_default_one() -> None:
    assert str(PodName.parse("cart-1")) == "default/cart-1"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 3601])
def test_seconds_that_are_none_are_refused(seconds: float) -> None:
    with pytest.raises(ParameterError):
        Cluster(Shell(dry=True), {}).noisy(PodName.parse("a/b"), seconds)


def _applied(log: Path) -> list[dict[str, object]]:
    return [d for d in yaml.safe_load_all(Path(f"{log}.applied").read_text()) if d]


@pytest.mark.parametrize(
    ("method", "settings", "path", "value"),
    [
        ("deploy_ballast", {"CPUS": "13"}, ("resources", "requests", "cpu"), "13"),
        ("deploy_ballast", {"CPUS": "13"}, ("resources", "limits", "cpu"), "13"),
        ("deploy_stressor", {"WORKERS": "6"}, ("env", 0, "value"), "6"),
        ("deploy_stressor", {"WORKERS": "6"}, ("resources", "limits", "cpu"), "6"),
    ],
)
def test_settings_reach_the_manifest(
    kubectl: Path, method: str, settings: dict[str, str], path: tuple[str | int, ...], value: str
) -> None:
    if os.environ["REAL_KUBECTL"] == "kubectl-is-missing":
        pytest.skip("needs kubectl, whose kustomize renders")
    getattr(Cluster(Shell(), {"PROJECT": "p"} | settings), method)()
    names = {"deploy_ballast": "ballast", "deploy_stressor": "cpu-stressor"}
    (found,) = [d for d in _applied(kubectl) if d["metadata"]["name"] == names[method]]  # type: ignore[index]
    where = found["spec"]["template"]["spec"]["containers"][0]  # type: ignore[index]
    assert where["image"] == f"europe-west1-docker.pkg.dev/p/labkit/labkit-tools:{__version__}"
    for step in path:
        where = where[step]
    assert where == value


def test_the_lab_can_be_sent_to_a_node_and_its_outcomes_are_fetched(kubectl: Path) -> None:
    if os.environ["REAL_KUBECTL"] == "kubectl-is-missing":
        pytest.skip("needs kubectl, whose kustomize renders")
    Cluster(Shell(), {"PROJECT": "p", "NODE": "node-3.internal"}).lab()
    (job,) = [d for d in _applied(kubectl) if d["kind"] == "Job"]
    selector = job["spec"]["template"]["spec"]["nodeSelector"]  # type: ignore[index]
    assert selector == {"kubernetes.io/os": "linux", "kubernetes.io/hostname": "node-3.internal"}
    log = kubectl.read_text()
    assert "'cp' 'labkit-outcomes-reader:/outcomes/.'" in log
    assert log.rindex("'delete'") > log.index("'cp'"), "the reader goes again"


def test_a_lab_that_failed_on_the_cluster_is_a_failure_here_with_its_outcomes_fetched(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ["REAL_KUBECTL"] == "kubectl-is-missing":
        pytest.skip("needs kubectl, whose kustomize renders")
    monkeypatch.setenv("ANSWER_JOB", "failed")
    with pytest.raises(
        LabkitError, match="BackoffLimitExceeded: Job has reached the specified backoff limit"
    ):
        Cluster(Shell(), {"PROJECT": "p"}).lab()
    assert "'cp'" in kubectl.read_text()


def _watch(**patience: float) -> JobWatch:
    return JobWatch(Shell(), "labkit-lab", "labkit", ask_s=0.01, **patience)


def test_the_log_is_asked_for_only_when_there_is_a_container_and_what_it_waits_for_is_told(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANSWER_PODS", "none unscheduled unscheduled creating creating away creating running")
    watch = _watch()
    watch.wait_until_it_runs()
    watch.follow_its_log()
    out, err = capfd.readouterr()
    assert out == "the lab's log\n"
    told = [line for line in err.splitlines() if line.startswith(("waiting", "asking"))]
    assert told == [
        "waiting: the Job has no pod yet",
        "waiting: Unschedulable: 0/3 nodes",
        "waiting: ContainerCreating",
        "asking once more: The connection to the server was refused",
    ]


def test_a_pod_that_has_ended_already_has_a_log_too(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANSWER_PODS", "succeeded")
    watch = _watch()
    watch.wait_until_it_runs()
    watch.follow_its_log()
    assert capfd.readouterr().out == "the lab's log\n"


@pytest.mark.parametrize(
    ("pods", "patience_s", "why"),
    [
        ("creating", 0.0, "ContainerCreating"),
        ("unscheduled", 0.0, "Unschedulable"),
        ("badname", 900.0, "InvalidImageName"),
    ],
)
def test_a_pod_that_does_not_begin_is_an_error_with_its_reason(
    kubectl: Path, monkeypatch: pytest.MonkeyPatch, pods: str, patience_s: float, why: str
) -> None:
    monkeypatch.setenv("ANSWER_PODS", pods)
    with pytest.raises(JobNotFinished, match=why) as caught:
        _watch(patience_s=patience_s).wait_until_it_runs()
    assert "describe pods" in caught.value.remedy


def test_a_job_is_done_only_by_its_own_word(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER_JOB", "open suspended open complete")
    assert _watch().wait_for_its_end() == ""
    assert kubectl.read_text().count("'get' 'job'") == 4


def test_a_job_that_says_nothing_is_no_success(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER_JOB", "open")
    monkeypatch.setenv("ANSWER_LIMIT", "0")
    with pytest.raises(JobNotFinished, match="neither"):
        _watch(grace_s=0.1).wait_for_its_end()


def test_an_api_server_that_stays_away_is_an_error(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER_PODS", "away")
    with pytest.raises(CommandFailed, match="refused"):
        _watch().wait_until_it_runs()


def test_undeploy_ends_the_measuring_first(kubectl: Path) -> None:
    Cluster(Shell(), {}).undeploy()
    deletes = [line for line in kubectl.read_text().splitlines() if "'delete'" in line]
    assert "'daemonset' 'labkit-exporter' 'labkit-bpftool'" in deletes[0]
    assert "'namespace' 'labkit' 'labkit-demo'" in deletes[1]
    assert "'clusterrolebinding,clusterrole' 'labkit-exporter'" in deletes[2]


@pytest.mark.parametrize("settings", [{"CPUS": "2.5"}, {"CPUS": "0"}, {"CPUS": "many"}])
def test_ballast_takes_whole_cpus_only(settings: dict[str, str]) -> None:
    with pytest.raises(ParameterError):
        Cluster(Shell(dry=True), settings).deploy_ballast()


def test_an_overlay_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ParameterError, match="gke or kind"):
        Cluster(Shell(dry=True), {"OVERLAY": "eks"}).deploy()


def test_a_missing_program_is_named_with_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingTool, match=r"kubernetes\.io/docs/tasks/tools"):
        Shell().run("kubectl", "version")


def test_a_manifest_that_is_not_there_is_said_before_anything_is_applied(kubectl: Path) -> None:
    from labkit.containers.manifests import apply

    with pytest.raises(LabkitError, match=r"there is no k8s/nothing\.yaml"):
        apply(Shell(), Rendering(("nothing.yaml",)))
    assert kubectl.read_text() == ""
