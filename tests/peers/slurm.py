#!/usr/bin/env python3
"""A grid on a real Slurm cluster whose nodes fail, beside the same grid on this machine.

    cargo xtask peers slurm               # as root, on Debian or Ubuntu: installs slurm-wlm and munge if missing
    XTASK=target/release/xtask LOWRANK=target/release/lowrank tests/peers/slurm.py

The cluster is one controller and two nodes on this machine, in a temporary folder, with ports of its own. A node is a
PID namespace with a `slurmd`: killing the namespace ends the daemon, its job steps and their processes at one moment,
as a power cut does. `cargo xtask experiment glue --launcher slurm` submits 12 cells, and then

1. a node dies while it runs cells: Slurm requeues them, and they resume from their newest checkpoints;
2. a node is lost, but its cells live: Slurm requeues them, and the requeued elements wait for them;
3. the array is cancelled and the grid is submitted again: the cancelled cells resume from their checkpoints.

The grid must end with the table of a local one, equal in every evaluation. Exit status 1 on any difference.
"""

import csv
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
NODES, CORES = ["node1", "node2"], 2
STEPS, EVERY = 400, 40
GRID = {
    "tasks": ["sst2", "rte"],
    "methods": ["full", "lora", "lotr"],
    "seeds": [0, 1],
    "defaults": {"max_steps": STEPS, "eval_every": EVERY, "save_every": EVERY},
}
CELLS = 12
# Runs a command whose processes all end with it, and it with this one.
NAMESPACE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Above all priorities that Slurm gives by itself, below its special values.
TOP = 2**32 - 100
# Columns of the report that depend on the machine's load.
LOAD = {"ms_per_step", "peak_rss_mb", "wall_s"}
CONFIG = """\
ClusterName=peers
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=5
# Requeued is only what asks for it.
JobRequeue=0
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def fail(message):
    sys.exit(f"error: {message}")


def install():
    """Debian's Slurm, unless it is installed."""
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if os.geteuid() != 0:
        fail("a node is a PID namespace with a slurmd, which needs root; run this as root")
    if missing:
        apt = ["apt-get", "install", "--yes", "--no-install-recommends", *sorted(missing)]
        print(f"installing {', '.join(sorted(missing))}", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
        subprocess.run(apt, check=True, env=environment, stdout=subprocess.DEVNULL)


def wait_for(what, condition, seconds=300):
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    fail(f"{what}: not within {seconds} s")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """munged, slurmctld and the nodes, each in a PID namespace."""

    def __init__(self, folder):
        self.folder = folder
        self.namespaces = {}
        (folder / "state").mkdir()
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o400)
        config = CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3), cores=CORES)
        (folder / "slurm.conf").write_text(config)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self):
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self.spawn("munged", "munged", "--foreground", *options)
        wait_for("munged", (self.folder / "munge.socket").exists)
        self.spawn("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        wait_for("idle nodes", lambda: all(self.node_state(node) == "IDLE" for node in NODES))

    def start_node(self, node):
        self.spawn(node, "slurmd", "-D", "-N", node)

    def spawn(self, name, *command):
        # The shell is the namespace's first process: it outlives the daemon and reaps the orphans.
        init = ["bash", "-c", '"$@" & while sleep 3600; do :; done', "init", *command]
        with open(self.folder / f"{name}.out", "a") as output:
            self.namespaces[name] = subprocess.Popen(
                [*NAMESPACE, *init], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True)

    def kill(self, name):
        """Ends a namespace with all its processes."""
        process = self.namespaces.pop(name)
        (init,) = children(process.pid)
        os.kill(init, signal.SIGKILL)
        process.wait()

    def kill_daemon(self, node):
        """Ends a node's slurmd; the processes of its jobs run on."""
        (init,) = children(self.namespaces[node].pid)
        (daemon,) = [pid for pid in children(init) if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd"]
        os.kill(daemon, signal.SIGKILL)

    def stop(self):
        for process in self.namespaces.values():
            process.kill()
            process.wait()

    def run(self, *command):
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            fail(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def node_state(self, node):
        """The state, with an asterisk while the node does not answer."""
        return re.search(r"State=(\S+)", self.run("scontrol", "show", "node", node))[1]

    def jobs(self, job):
        """State, node and restarts of every started or requeued element, by index."""
        found = {}
        for line in self.run("scontrol", "--oneliner", "show", "job", job).splitlines():
            fields = dict(re.findall(r"(\S+?)=(\S*)", line))
            if fields.get("ArrayTaskId", "").isdigit():
                found[int(fields["ArrayTaskId"])] = fields
        return found

    def running(self, job, node=None):
        return {index for index, fields in self.jobs(job).items()
                if fields["JobState"] == "RUNNING" and node in (None, fields["NodeList"])}

    def start_requeued(self, job, indices):
        """Waits until elements are requeued; they start next, not after the two minutes for which Slurm holds them."""
        waiting = lambda: all(self.jobs(job)[index]["JobState"] == "PENDING" for index in indices)
        wait_for("requeued elements", waiting)
        for index in indices:
            self.run("scontrol", "update", f"JobId={job}_{index}", "StartTime=now", f"Priority={TOP}")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Grid:
    """A grid's folder and the command that runs it."""

    def __init__(self, folder, config):
        self.cells = folder / "cells"
        self.folder = folder
        self.command = [os.environ["XTASK"], "experiment", "glue", "--config", config, "-o", folder,
                        "--lowrank", os.environ["LOWRANK"], "--threads", "1"]

    def submit(self, cluster):
        """The job and the ids of its elements' cells."""
        output = cluster.run(*self.command, "--jobs", str(len(NODES) * CORES), "--launcher", "slurm")
        script = (self.folder / "grid.sbatch").read_text()
        job = re.search(r"Submitted batch job (\d+)", output)[1]
        return job, re.search(r"cells=\(\n(.*?)\n\)", script, re.S)[1].split()

    def record(self, cell):
        return json.loads((self.cells / cell / "run.json").read_text())

    def is_done(self, cell):
        record = self.cells / cell / "run.json"
        return record.is_file() and json.loads(record.read_text())["train_info"]["status"] == "done"

    def checkpoint(self, cell):
        """The step of the newest checkpoint, 0 without one."""
        names = [path.name for path in (self.cells / cell).glob("checkpoints/step-*")]
        return max((int(name.removeprefix("step-")) for name in names if name[5:].isdigit()), default=0)

    def first_step(self, cell):
        """The first step of the newest attempt, by its log."""
        found = re.match(r"step (\d+)/", (self.cells / f"{cell}.log").read_text())
        return int(found[1]) if found else None

    def attempts(self, cell):
        """The number of processes that trained a cell: each has an event file."""
        exists = (self.cells / cell / "run.json").is_file()
        return len(self.record(cell)["train_info"]["event_files"]) if exists else 0

    def log(self, job, index):
        return (self.folder / "slurm" / f"{job}_{index}.log").read_text()

    def table(self):
        """The rows of the report, without published results and what depends on the machine's load."""
        with open(self.folder / "report.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == "measured"]
        return [{key: value for key, value in row.items() if key not in LOAD} for row in rows]


def trained(grid, indices, ids):
    """Whether every one of these cells has a checkpoint and much left to do."""
    return bool(indices) and all(0 < grid.checkpoint(ids[index]) <= STEPS // 2 for index in indices)


def position(grid, cell):
    """The newest checkpoint of a killed cell and the number of its attempts."""
    return grid.checkpoint(cell), grid.attempts(cell)


def resumed(grid, cells):
    """Waits until killed cells run or ran again, given their positions; returns the steps."""
    for cell, (step, attempts) in cells.items():
        first = wait_for(f"{cell} again", lambda: grid.first_step(cell) if grid.attempts(cell) > attempts else None)
        if first != step + 1:
            fail(f"{cell} had a checkpoint of step {step} and went on with step {first}")
    return ", ".join(str(step) for step, _ in cells.values())


def node_dies(cluster, grid, job, ids):
    node = NODES[1]
    wait_for(f"checkpoints of {CORES} cells on {node}",
             lambda: len(cluster.running(job, node)) == CORES and trained(grid, cluster.running(job, node), ids))
    elements = cluster.running(job, node)
    cluster.kill(node)
    started = time.monotonic()
    cells = {ids[index]: position(grid, ids[index]) for index in elements}
    if any(grid.is_done(cell) for cell in cells):
        fail("a killed cell had ended before")
    wait_for(f"{node} down", lambda: cluster.node_state(node).startswith("DOWN"))
    seconds = time.monotonic() - started
    cluster.start_requeued(job, elements)
    steps = resumed(grid, cells)
    print(f"{node} died: {len(cells)} cells killed, down after {seconds:.0f} s, {len(elements)} requeued, "
          f"resumed from steps {steps}", flush=True)
    return set(cells)


def node_is_lost(cluster, grid, job, ids):
    node = NODES[0]
    # The other one comes back, and gets what this one loses.
    cluster.start_node(NODES[1])
    wait_for(f"{NODES[1]} back", lambda: not cluster.node_state(NODES[1]).startswith("DOWN"))
    wait_for(f"a cell on {node}", lambda: any(trained(grid, [index], ids) for index in cluster.running(job, node)))
    elements = cluster.running(job, node)
    cells = {ids[index]: max(1, grid.attempts(ids[index])) for index in elements}
    cluster.kill_daemon(node)
    # Slurm would notice by itself, as it did before, but perhaps after the cells' end.
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    cluster.start_requeued(job, elements)
    waiting = lambda index: "another process runs it" in grid.log(job, index)
    for index in elements:
        wait_for(f"a second element of {ids[index]}", lambda: waiting(index) or grid.is_done(ids[index]))
    waited = sum(waiting(index) for index in elements)
    if waited == 0:
        fail(f"no requeued element met a cell of {node} that still ran")
    for cell, attempts in cells.items():
        wait_for(f"the end of {cell}", lambda: grid.is_done(cell))
        if grid.attempts(cell) != attempts:
            fail(f"{cell} was run by two nodes")
    cluster.kill(node)
    cluster.start_node(node)
    wait_for(f"{node} back", lambda: "DOWN" not in cluster.node_state(node) or cluster.run(
        "scontrol", "update", f"NodeName={node}", "State=RESUME"))
    print(f"{node} lost: {len(cells)} cells lived on, {len(elements)} requeued, {waited} waited for them, "
          "none was run twice", flush=True)


def array_is_cancelled(cluster, grid, job, ids):
    wait_for("a cell to cancel", lambda: any(trained(grid, [index], ids) for index in cluster.running(job)))
    elements = {index for index in cluster.running(job) if grid.checkpoint(ids[index]) > 0}
    cluster.run("scancel", job)
    wait_for("the cancelled array's end", lambda: cluster.run("squeue", "--noheader", "--job", job).strip() == "")
    # Processes end a moment after their jobs.
    time.sleep(1)
    cells = {ids[index]: position(grid, ids[index]) for index in elements if not grid.is_done(ids[index])}
    if not cells:
        fail("every cell had ended before the array was cancelled")
    job, ids = grid.submit(cluster)
    steps = resumed(grid, cells)
    print(f"array cancelled: {len(cells)} cells killed, {len(ids)} submitted again, resumed from steps {steps}",
          flush=True)
    return job, set(cells)


def on_cluster(cluster, grid):
    """Runs the grid on the cluster; returns the cells that resumed."""
    job, ids = grid.submit(cluster)
    if len(ids) != CELLS:
        fail(f"{len(ids)} cells instead of {CELLS}")
    killed = node_dies(cluster, grid, job, ids)
    node_is_lost(cluster, grid, job, ids)
    last, cancelled = array_is_cancelled(cluster, grid, job, ids)
    wait_for("the grid's end", lambda: all(map(grid.is_done, ids)), 900)
    wait_for("the array's end", lambda: cluster.run("squeue", "--noheader").strip() == "")
    for index, fields in cluster.jobs(last).items():
        if fields["JobState"] != "COMPLETED":
            fail(f"element {last}_{index} ended as {fields['JobState']}: {grid.log(last, index)}")
    if failures := [path.name for path in grid.cells.glob("*.failed")]:
        fail(f"cells that were killed count as failed: {', '.join(failures)}")
    # Nothing is left to submit: the same command makes the table.
    cluster.run(*grid.command, "--launcher", "slurm")
    return ids, killed, cancelled


def main():
    if len(sys.argv) != 1 or not {"XTASK", "LOWRANK"} <= os.environ.keys():
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.update({name: str(Path(os.environ[name]).resolve()) for name in ("XTASK", "LOWRANK")})
    os.chdir(ROOT)
    install()
    with tempfile.TemporaryDirectory(prefix="slurm-") as temporary:
        folder = Path(temporary)
        # munged lets anyone reach its socket, or does not start.
        folder.chmod(0o755)
        (folder / "grid.json").write_text(json.dumps(GRID))
        grid, local = (Grid(folder / name, folder / "grid.json") for name in ("on slurm", "local"))
        cluster = Cluster(folder)
        try:
            started = time.monotonic()
            cluster.start()
            ids, killed, cancelled = on_cluster(cluster, grid)
            seconds = time.monotonic() - started
        except BaseException:
            for name in ("munged.out", "slurmctld.out", *(f"{node}.out" for node in NODES)):
                log = folder / name
                lines = log.read_text().splitlines()[-8:] if log.exists() else []
                print(f"-- {name}", *lines, sep="\n", file=sys.stderr)
            raise
        finally:
            cluster.stop()
        started = time.monotonic()
        alone = subprocess.run([*NAMESPACE, *local.command, "--jobs", "2"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
        if alone.returncode != 0:
            fail(f"the local grid failed: {alone.stderr.strip()}")
        local_seconds = time.monotonic() - started

        different = [cell for cell in ids if evaluations(grid, cell) != evaluations(local, cell)]
        ours, theirs = grid.table(), local.table()
        is_equal = ours == theirs and len(ours) == len(GRID["methods"])
        attempts = sum(grid.attempts(cell) for cell in ids)
        print(f"{CELLS} cells, {attempts} attempts: {len(killed)} cells killed with a node, {len(cancelled)} with the "
              f"array; {seconds:.0f} s on Slurm, {local_seconds:.0f} s local")
        print(f"evaluations: {f'different in {different}' if different else 'equal'}")
        print(f"table of {len(ours)} methods: {'equal' if is_equal else f'{ours} instead of {theirs}'}")
        if different or not is_equal:
            sys.exit(1)


def evaluations(grid, cell):
    info = grid.record(cell)["train_info"]
    return {key: info[key] for key in ("status", "steps", "evals", "metric", "best_metric") if key in info}


if __name__ == "__main__":
    main()
