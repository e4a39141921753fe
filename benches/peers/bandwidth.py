"""The machine's read bandwidth: all threads read one large array with numpy, in a worker of its own."""

import concurrent.futures
import statistics
import time

from . import venvs, worker
from .engine import WorkerEngine

ARRAY_BYTES = 512 * 2**20
NUM_PASSES = 9


class Bandwidth(WorkerEngine):
    name = "bandwidth"
    module = "bandwidth"

    def install(self):
        venvs.install(self.folder, "numpy")

    def gigabytes_per_s(self):
        """The median of some passes over the array."""
        return self.ask({"do": "measure"})["gigabytes_per_s"]


class Worker:
    def start(self, threads, **_):
        import numpy

        self.parts = numpy.array_split(numpy.ones(ARRAY_BYTES // 8, dtype=numpy.int64), threads)
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.measure()

    def measure(self):
        rates = []
        for _ in range(NUM_PASSES):
            begun = time.perf_counter()
            list(self.pool.map(lambda part: part.max(), self.parts))
            rates.append(ARRAY_BYTES / (time.perf_counter() - begun) / 1e9)
        return {"gigabytes_per_s": statistics.median(rates)}


if __name__ == "__main__":
    worker.serve(Worker())
