"""What the figures depend on beside the engines: the processor, its cores, the model's file."""

import os
import pathlib
import platform
import resource
import subprocess

from .engine import EngineError

CPU_FOLDER = pathlib.Path("/sys/devices/system/cpu")
STARTER_PATTERN = "SmolLM2-135M-Instruct*.gguf"


def physical_cores():
    """One logical processor of each core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    seen, cores = set(), []
    for cpu in allowed:
        try:
            siblings = (CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            cores.append(cpu)
    return cores


def keep_to_cores(num_threads):
    """Binds this process, and with it the engines that it starts, to so many cores."""
    cores = physical_cores()
    if num_threads > len(cores):
        raise EngineError(f"--threads {num_threads}: this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:num_threads])


def busy_seconds():
    """Processor time that the whole machine has used, what was taken from it by its host included."""
    names = "user nice system idle iowait irq softirq steal".split()
    first = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    ticks = dict(zip(names, map(int, first[1:])))
    return sum(ticks[name] for name in names if name not in ("idle", "iowait")) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Processor time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def starter_model(binary):
    """The starter model's file in Sconce's cache; it is brought if it is not there."""
    found = find_starter()
    if found is None:
        if not binary.is_file():
            raise EngineError(f"the starter model is in no cache, and {binary} is not there to bring it: name a file")
        command = [str(binary), "generate", "--max-tokens", "1", "Hello"]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            raise EngineError(f"the starter model could not be brought: run `{' '.join(command)}`, or name a file")
        found = find_starter()
    if found is None:
        raise EngineError("the starter model is in no cache as a GGUF file: name a file")
    return found


def find_starter():
    env = os.environ.get
    cache = pathlib.Path(env("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    own = pathlib.Path(env("SCONCE_CACHE") or cache / "sconce")
    hub = pathlib.Path(env("HF_HUB_CACHE") or pathlib.Path(env("HF_HOME") or cache / "huggingface") / "hub")
    places = [(own, STARTER_PATTERN)] + [(root, f"models--*/snapshots/*/{STARTER_PATTERN}") for root in (own / "hub", hub)]
    files = [path for root, pattern in places for path in sorted(root.glob(pattern))]
    return files[0] if files else None
