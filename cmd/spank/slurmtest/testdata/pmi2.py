"""pmi2.py - tasks of a step exchange values through Slurm's PMI-2.

The wire protocol is that of MPICH: the first command is one line, all others have their length in front, six characters,
and are made of "name=value;". Each rank puts a value, all meet at a fence, and each gets what all others have put.
"""
import os
import socket


class PMI2:
    def __init__(self):
        self.socket = socket.socket(fileno=os.dup(int(os.environ["PMI_FD"])))
        self.socket.settimeout(60)
        self.socket.sendall(b"cmd=init pmi_version=2 pmi_subversion=0\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self.receive(1)
        assert b"rc=0" in answer, answer
        self.ask("fullinit", pmijobid="none", pmirank=os.environ["PMI_RANK"], threaded="FALSE")

    def receive(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "slurmstepd has closed the connection"
            data += more
        return data

    def ask(self, command, **values):
        text = "cmd=%s;" % command + "".join("%s=%s;" % v for v in values.items())
        self.socket.sendall(b"%6d" % len(text) + text.encode())
        text = self.receive(int(self.receive(6))).decode()
        answer = dict(part.split("=", 1) for part in text.split(";") if part)
        assert answer["rc"] == "0" and answer["cmd"] == command + "-response", answer
        return answer


def main():
    rank, size = int(os.environ["PMI_RANK"]), int(os.environ["PMI_SIZE"])
    pmi = PMI2()
    pmi.ask("kvs-put", key="rank-%d" % rank, value="%s/%d" % (os.environ["SLURMD_NODENAME"], rank * rank))
    pmi.ask("kvs-fence")
    got = [pmi.ask("kvs-get", jobid=os.environ["SLURM_JOB_ID"], srcid=str(-1), key="rank-%d" % r)["value"] for r in range(size)]
    nodes = {value.split("/")[0] for value in got}
    total = sum(int(value.split("/")[1]) for value in got)
    pmi.ask("finalize")
    print("pmi2 rank=%d size=%d nodes=%d sum=%d" % (rank, size, len(nodes), total), flush=True)


if __name__ == "__main__":
    main()
