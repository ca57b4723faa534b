"""mpi.py mpich|openmpi: ranks add up numbers and pass a mebibyte around, by a library of Debian's without headers."""
import ctypes, os, sys

if sys.argv[1] == "mpich":  # its handles are numbers (mpi.h)
    lib = ctypes.CDLL("libmpich.so.12", mode=ctypes.RTLD_GLOBAL)
    world, integer, add, byte = (ctypes.c_int(n) for n in (0x44000000, 0x4C000405, 0x58000003, 0x4C00010D))
    ignore = ctypes.c_void_p(1)
else:  # and Open MPI's are objects
    lib = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
    world, integer, add, byte = (
        ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(lib, "ompi_mpi_" + n))) for n in ("comm_world", "int", "op_sum", "byte")
    )
    ignore = ctypes.c_void_p(0)


def call(name, *arguments):
    status = getattr(lib, "MPI_" + name)(*arguments)
    if status:
        sys.exit("MPI_%s: %d" % (name, status))


call("Init", None, None)
rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
call("Comm_rank", world, ctypes.byref(rank))
call("Comm_size", world, ctypes.byref(size))
r, n = rank.value, size.value
call("Allreduce", ctypes.byref(ctypes.c_int(r + 1)), ctypes.byref(total), 1, integer, add, world)
length = 1 << 20
mine, theirs = ctypes.create_string_buffer(bytes([r]) * length, length), ctypes.create_string_buffer(length)
call("Sendrecv", mine, length, byte, (r + 1) % n, 7, theirs, length, byte, (r - 1) % n, 7, world, ignore)
right = theirs.raw == bytes([(r - 1) % n]) * length
shared = any("/dev/shm/" in line for line in open("/proc/self/maps"))
print("size=%d sum=%d right=%s shared=%s" % (n, total.value, right, shared), flush=True)
call("Finalize")
