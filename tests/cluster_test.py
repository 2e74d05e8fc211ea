#!/usr/bin/env python3
"""scripts/cluster with stand-ins for srun, scontrol, mpirun and csml on PATH: which exit code does what, what is passed
on, and what a signal does.

usage: tests/cluster_test.py      (python3's standard library only)
"""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "cluster"


class ClusterTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="csml_cluster_")
        self.tmp = pathlib.Path(self.folder.name)
        self.environment = {"PATH": f"{self.tmp}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "TMPDIR": str(self.tmp)}

    def tearDown(self):
        self.folder.cleanup()

    def stand_in(self, name, body):
        """A program of this name that notes its arguments and then does `body`."""
        path = self.tmp / name
        path.write_text(f"#!/usr/bin/env bash\necho \"$*\" >>'{self.tmp}/{name}.calls'\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def calls(self, name):
        path = self.tmp / f"{name}.calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def run_script(self, name, *arguments, **environment):
        return subprocess.run([SCRIPTS / name, *arguments], env={**self.environment, **environment},
                              capture_output=True, text=True, timeout=60, cwd=self.tmp)

    def start_script(self, name, *arguments, **environment):
        """Running, once its stand-in says so by a file `started`."""
        job = subprocess.Popen([SCRIPTS / name, *arguments], env={**self.environment, **environment},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.tmp)
        for _ in range(1000):
            if (self.tmp / "started").exists():
                return job
            time.sleep(0.01)
        self.fail("the stand-in was not started")

    # ---- Slurm ------------------------------------------------------------------------------------------------------

    def slurm(self, code, **environment):
        self.stand_in("srun", f"exit {code}")
        self.stand_in("scontrol", "exit ${SCONTROL_CODE:-0}")
        for name in ("srun", "scontrol"):
            (self.tmp / f"{name}.calls").unlink(missing_ok=True)
        return self.run_script("slurm.sh", "--preset", "a b", "--out", "runs/a", **environment)

    def test_slurm_exit_codes(self):
        for code, requeued in ((0, False), (75, True), (1, False), (2, False), (70, True), (137, True), (134, False)):
            done = self.slurm(code)
            self.assertEqual(self.calls("scontrol"), ["requeue 17"] if requeued else [], f"{code}: {done.stderr}")
            self.assertEqual(done.returncode, 0 if requeued else code, f"{code}: {done.stderr}")
        # A process that is lost again and again ends the job; a stop by a signal never does.
        self.assertEqual(self.slurm(70, SLURM_RESTART_COUNT="3").returncode, 70)
        self.assertEqual(self.calls("scontrol"), [])
        self.assertEqual(self.slurm(70, SLURM_RESTART_COUNT="3", CSML_RETRIES="4").returncode, 0)
        self.assertEqual(self.slurm(75, SLURM_RESTART_COUNT="300").returncode, 0)
        self.assertEqual(self.calls("scontrol"), ["requeue 17"])
        done = self.slurm(75, SCONTROL_CODE="1")
        self.assertEqual(done.returncode, 75)
        self.assertIn("submit the same command again", done.stderr)

    def test_slurm_command(self):
        """The same command in every start, with the arguments as they were."""
        self.slurm(75)
        first = self.calls("srun")
        self.slurm(0, SLURM_RESTART_COUNT="1")
        self.assertEqual(first, self.calls("srun"))
        self.assertIn("csml pretrain --preset a b --out runs/a", first[0])
        self.assertIn("--mpi=pmix", first[0])
        self.stand_in("srun", "echo \"$OMP_NUM_THREADS|$CSML_RENDEZVOUS\"")
        meet = {self.run_script("slurm.sh", CSML_MPI="none", SLURM_CPUS_PER_TASK="12", SLURM_RESTART_COUNT=n).stdout
                for n in ("0", "1")}
        self.assertEqual(len(meet), 2, "a rendezvous file is used twice")
        for text in meet:
            self.assertTrue(text.startswith("12|") and ".csml-rendezvous-17-" in text, text)

    def test_slurm_header(self):
        header = [line for line in (SCRIPTS / "slurm.sh").read_text(encoding="utf-8").splitlines()
                  if line.startswith("#SBATCH")]
        for option in ("--signal=USR1@120", "--requeue", "--open-mode=append"):
            self.assertIn(f"#SBATCH {option}", header)

    def test_slurm_signal(self):
        """A preemption's SIGTERM reaches the script too: it waits for srun and does what its exit code says."""
        self.stand_in("srun", f"touch '{self.tmp}/started'; sleep 1; exit 75")
        self.stand_in("scontrol", "exit 0")
        job = self.start_script("slurm.sh", "--out", "runs/a")
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 0, errors)
        self.assertEqual(self.calls("scontrol"), ["requeue 17"])

    # ---- mpirun -----------------------------------------------------------------------------------------------------

    def test_mpirun_command(self):
        self.stand_in("mpirun", "exit ${CODE:-0}")
        done = self.run_script("mpirun.sh", "4", "--out", "runs/a", CODE="75", CSML_X="1", MPIRUN_OPTIONS="--tag-output -v")
        self.assertEqual(done.returncode, 75, done.stderr)
        call = self.calls("mpirun")[0]
        self.assertIn("-np 4 ", call)
        self.assertTrue(call.endswith(" --tag-output -v csml pretrain --out runs/a"), call)
        for word in ("-x OMP_NUM_THREADS", "-x CSML_X", "--bind-to none"):
            self.assertIn(word, call)
        self.run_script("mpirun.sh", "16", "--out", "a", HOSTFILE="hosts", PER_NODE="8")
        self.assertIn("--hostfile hosts --map-by ppr:8:node", self.calls("mpirun")[1])
        self.assertEqual(self.run_script("mpirun.sh", "16", HOSTFILE="hosts").returncode, 1)
        for wrong in ((), ("many",), ("0",)):
            done = self.run_script("mpirun.sh", *wrong)
            self.assertEqual(done.returncode, 2)
            self.assertIn("number of processes", done.stderr)

    def test_mpirun_signal(self):
        """SIGTERM becomes the SIGUSR1 that mpirun passes on; the script waits for its end."""
        self.stand_in("mpirun", f"trap 'sleep 0.3; exit 75' USR1; trap 'exit 1' TERM; touch '{self.tmp}/started'\n"
                                "while true; do sleep 0.05; done")
        job = self.start_script("mpirun.sh", "2", "--out", "runs/a")
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 75, errors)

    # ---- RANK, WORLD_SIZE, LOCAL_RANK -------------------------------------------------------------------------------

    def test_variables(self):
        self.stand_in("csml", "echo \"$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $CSML_RENDEZVOUS\"")
        done = self.run_script("variables.sh", "--out", "runs/a", NODES="2", NODE="1", PER_NODE="3", CSML_RENDEZVOUS="meet")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sorted(done.stdout.splitlines()), [f"{3 + i} 6 {i} 3 meet" for i in range(3)])
        self.assertEqual(self.calls("csml"), ["pretrain --out runs/a"] * 3)
        self.assertEqual(self.run_script("variables.sh", NODES="2", PER_NODE="1").returncode, 1)
        once, again = (self.run_script("variables.sh", PER_NODE="1").stdout for _ in range(2))
        self.assertNotEqual(once, again, "a rendezvous file is used twice")

    def test_variables_exit_codes(self):
        """All stop: 75. One fails: its code, and the others, which hear no polite end, are ended."""
        self.stand_in("csml", "sleep 0.$RANK; exit 75")
        self.assertEqual(self.run_script("variables.sh", PER_NODE="3").returncode, 75)
        self.stand_in("csml", "[ $RANK = 1 ] && exit 9\ntrap '' TERM\nexec sleep 40")
        begin = time.time()
        done = self.run_script("variables.sh", PER_NODE="3", GRACE="0.3")
        self.assertEqual(done.returncode, 9, done.stderr)
        self.assertLess(time.time() - begin, 35, "the others are not ended")

    def test_variables_signal(self):
        self.stand_in("csml", f"trap 'exit 75' USR1; touch '{self.tmp}/started'; while true; do sleep 0.05; done")
        job = self.start_script("variables.sh", PER_NODE="1")
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 75, errors)

    def test_shellcheck(self):
        if not shutil.which("shellcheck"):
            self.skipTest("shellcheck not present")
        done = subprocess.run(["shellcheck", *sorted(SCRIPTS.glob("*.sh"))], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
