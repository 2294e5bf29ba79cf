"""The launch scripts hand a command over as it is: under stand-ins for srun and gcloud that run it here."""

import subprocess

import pytest

from support.paths import ROOT

SCRIPTS = ROOT / "scripts"
SRUN = 'echo "srun $1" >&2; shift; "$@"'
GCLOUD = 'echo "gcloud ${*:1:9}" >&2; cd ~; bash -c "${10}"'
MWORK = 'pwd; printf "%s|" "$@"'
COMMAND = ["evaluate", "--model", "a folder/with 'quotes'", "--corpus", "en=$HOME/*.txt"]


def launched(tmp_path, script, *arguments, **environment):
    """What the script did, with srun, gcloud and mwork as above first on the PATH."""
    for name, text in (("srun", SRUN), ("gcloud", GCLOUD), ("mwork", MWORK)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{text}\n")
        program.chmod(0o755)
    given = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), **environment}
    command = ["bash", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_slurm_gets_the_command_in_the_folder_of_submission(tmp_path):
    (tmp_path / "work").mkdir()
    done = launched(tmp_path, "launch_slurm.sh", *COMMAND, SLURM_SUBMIT_DIR=str(tmp_path / "work"))
    assert done.stderr == "srun --kill-on-bad-exit=1\n"
    assert done.stdout == f"{tmp_path}/work\n" + "|".join([*COMMAND, "--coordinator", "auto", ""])


def test_every_host_of_a_pod_gets_the_command(tmp_path):
    (tmp_path / "mwork-jax").mkdir()
    done = launched(tmp_path, "launch_tpu_pod.sh", "pod", "zone-a", *COMMAND)
    assert done.stderr == "gcloud compute tpus tpu-vm ssh pod --zone zone-a --worker=all --command\n"
    assert done.stdout == f"{tmp_path}/mwork-jax\n" + "|".join([*COMMAND, "--coordinator", "auto", ""])


@pytest.mark.parametrize("script", ["launch_slurm.sh", "launch_tpu_pod.sh"])
def test_no_command_is_one_line(script, tmp_path):
    done = launched(tmp_path, script)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stderr.count("\n") == 1
