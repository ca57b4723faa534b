"""peers.py RANK SIZE DIR: tasks that are started one by one find each other, share memory and read each other's."""
import ctypes, os, sys, time
from multiprocessing import resource_tracker, shared_memory

rank, size, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER_ANY, which counts where Yama restricts


class Vec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def until(found):
    for _ in range(3000):
        if found():
            return
        time.sleep(0.01)
    sys.exit("%d waited in vain" % rank)


mine = ctypes.create_string_buffer(b"task %d" % rank)
with open("%s/%d.tmp" % (place, rank), "w") as f:
    f.write("%d %d" % (os.getpid(), ctypes.addressof(mine)))
os.rename("%s/%d.tmp" % (place, rank), "%s/%d" % (place, rank))
until(lambda: all(os.path.exists("%s/%d" % (place, r)) for r in range(size)))
pid, address = map(int, open("%s/%d" % (place, (rank + 1) % size)).read().split())
theirs = ctypes.create_string_buffer(16)
local, remote = Vec(ctypes.addressof(theirs), 7), Vec(address, 7)
if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) != 7:
    sys.exit("process_vm_readv: " + os.strerror(ctypes.get_errno()))

name = "squire-" + os.path.basename(place)
if rank == 0:
    memory = shared_memory.SharedMemory(name=name, create=True, size=size)
else:
    until(lambda: os.path.exists("/dev/shm/" + name))
    until(lambda: os.stat("/dev/shm/" + name).st_size == size)
    memory = shared_memory.SharedMemory(name=name)
    resource_tracker.unregister("/" + name, "shared_memory")  # who made it removes it
memory.buf[rank] = rank + 1
until(lambda: all(memory.buf[:size]))
print(theirs.value.decode(), sum(memory.buf[:size]), flush=True)
open("%s/%d.end" % (place, rank), "w").close()
until(lambda: all(os.path.exists("%s/%d.end" % (place, r)) for r in range(size)))  # their memory is read
memory.close()
if rank == 0:
    memory.unlink()
