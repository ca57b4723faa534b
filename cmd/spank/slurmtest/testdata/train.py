"""train.py - stands for a training program of many ranks.

Every rank looks at its container, takes part in an exchange over TCP that the rank 0 leads at MASTER_ADDR:MASTER_PORT,
and writes what it has seen to a file below --checkpoint-path, or to standard output without one.
"""
import argparse
import errno
import json
import os
import re
import socket
import struct
import time

import numpy

PATIENCE = 60  # seconds for anything that waits for other ranks


def refused(path):
    """Returns the error of making a file, by name; empty when that worked, and the file is gone again."""
    try:
        with open(path, "x"):
            pass
    except OSError as e:
        return errno.errorcode[e.errno]
    os.unlink(path)
    return ""


def root_mount():
    """Returns the file system type of the last mount on /."""
    with open("/proc/self/mountinfo") as f:
        mounts = [line.split() for line in f]
    return [m[m.index("-") + 1] for m in mounts if m[4] == "/"][-1]


def status(*names):
    with open("/proc/self/status") as f:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    return {name: fields[name] for name in names}


def gpus():
    """Returns the minor numbers of the device nodes of GPUs, and of those that can be used at all."""
    nodes, usable = [], []
    for name in sorted(os.listdir("/dev")):
        if not re.fullmatch(r"nvidia\d+", name):
            continue
        nodes.append(os.minor(os.stat("/dev/" + name).st_rdev))
        try:
            os.close(os.open("/dev/" + name, os.O_RDWR))
        except OSError as e:
            if e.errno not in (errno.ENXIO, errno.ENODEV):  # there is no driver
                continue
        usable.append(nodes[-1])
    return nodes, usable


def receive(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError("the other rank has closed the connection")
        data += more
    return data


def all_reduce(rank, size, mine):
    """Sums an array of all ranks: they send it to the first, which returns the sum to everybody."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(("", address[1]), backlog=size) as server:
            server.settimeout(PATIENCE)
            total, ranks = mine.copy(), []
            while len(ranks) < size - 1:
                connection, _ = server.accept()
                connection.settimeout(PATIENCE)
                other, = struct.unpack("!I", receive(connection, 4))
                total += numpy.frombuffer(receive(connection, mine.nbytes))
                ranks.append((other, connection))
            for _, connection in ranks:
                with connection:
                    connection.sendall(total.tobytes())
            assert sorted(other for other, _ in ranks) == list(range(1, size)), "a rank came twice"
        return total
    end = time.monotonic() + PATIENCE
    while True:  # the first may not listen yet
        try:
            connection = socket.create_connection(address, timeout=PATIENCE)
            break
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    with connection:
        connection.sendall(struct.pack("!I", rank) + mine.tobytes())
        return numpy.frombuffer(receive(connection, mine.nbytes))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="none")
    parser.add_argument("--data-path", default="/data/datasets/pile")
    parser.add_argument("--checkpoint-path")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    args = parser.parse_args()

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    seen = {
        "rank": rank, "size": size, "local": int(os.environ["SLURM_LOCALID"]), "node": os.environ["SLURMD_NODENAME"],
        "parallel": args.tensor_parallel * args.pipeline_parallel, "model": args.model,
        "uid": os.getuid(), "gid": os.getgid(), "cwd": os.getcwd(),
        "root": root_mount(), "marker": open("/etc/image-marker").read(),
        "device": os.stat("/usr/lib/os-release").st_dev, "namespace": os.stat("/proc/self/ns/mnt").st_ino,
        "writable": refused("/written-%d" % rank) == "",
        "data": open(args.data_path).read(), "dataRefused": refused("%s/new-%d" % (os.path.dirname(args.data_path), rank)),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "MASTER_", "SITE_"))},
        "image": os.environ.get("IMAGE_VARIABLE", ""), "cpus": os.environ.get("SLURM_CPUS_PER_TASK", ""),
        "status": status("NoNewPrivs", "CapEff", "CapBnd"),
    }
    seen["gpus"], seen["usable"] = gpus()
    with open("/root-%d" % rank, "w") if seen["writable"] else open(os.devnull, "w") as f:
        f.write("here\n")
    if "MASTER_ADDR" in os.environ:
        mine = numpy.zeros(size)
        mine[rank] = rank * rank
        seen["sum"] = float(all_reduce(rank, size, mine).sum())
        # All are there: who shares this root has written to it.
        seen["neighbours"] = sorted(int(n[5:]) for n in os.listdir("/") if n.startswith("root-"))
    if args.checkpoint_path:
        numpy.save("%s/weights-%d.npy" % (args.checkpoint_path, rank), numpy.full(4, rank))
        with open("%s/rank-%d.json" % (args.checkpoint_path, rank), "w") as f:
            json.dump(seen, f)
    else:
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
