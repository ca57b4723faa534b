"""python.py: processes of all kinds that share memory, queues, locks and semaphores; threads; programs that are started."""
import multiprocessing as mp, subprocess, threading
from multiprocessing import shared_memory

import numpy as np


def square(x):
    return x * x


def count(value, start):
    start.wait()
    for _ in range(100):
        with value.get_lock():
            value.value += 1


def fill(name, n):
    memory = shared_memory.SharedMemory(name=name)
    np.ndarray((n,), dtype=np.int64, buffer=memory.buf)[:] = np.arange(n)
    memory.close()


def with_method(method):
    context = mp.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(square, range(20)) == [x * x for x in range(20)]
    value, start, queue = context.Value("i", 0), context.Barrier(2), context.Queue()
    memory = shared_memory.SharedMemory(create=True, size=80)
    array = np.ndarray((10,), dtype=np.int64, buffer=memory.buf)
    processes = [context.Process(target=count, args=(value, start)) for _ in range(2)]
    processes += [context.Process(target=fill, args=(memory.name, 10)), context.Process(target=queue.put, args=("queue",))]
    for p in processes:
        p.start()
    said = queue.get()
    for p in processes:
        p.join()
    print(method, value.value, array.sum(), said, [p.exitcode for p in processes])
    del array
    memory.close()
    memory.unlink()


if __name__ == "__main__":
    for m in ("fork", "spawn"):
        with_method(m)
    a = np.random.rand(200, 200)
    assert np.allclose(a @ np.linalg.inv(a), np.eye(200))
    sums = []
    threads = [threading.Thread(target=lambda: sums.append((a @ a).shape)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    sub = subprocess.run(["sh", "-c", "tr a-z A-Z; exit 3"], input=b"in\n", capture_output=True)
    print(len(sums), sub.stdout, sub.returncode)
