"""A supervisor over the real server and two small children; run as a program by test_supervisor.py."""

import os
import sys
from pathlib import Path

from service.standalone.redis_server import find_server, is_ready, server_command
from service.standalone.run_dir import locked_run_dir
from service.standalone.supervisor import ChildSpec, Supervisor

# It starts a child of its own, as a worker does, and leaves word of that, and of when it was told to end.
NEST = """
import pathlib, signal, subprocess, sys, time
mark = pathlib.Path(sys.argv[1])
def end(number, frame):
    with mark.with_name("ended").open("a") as ended:
        socket = mark.with_name("run") / "redis.sock"
        ended.write(f"{mark.stem} with redis {'up' if socket.exists() else 'down'}\\n")
    raise SystemExit
signal.signal(signal.SIGTERM, end)
mark.write_text(str(subprocess.Popen(["sleep", "600"]).pid))
time.sleep(600)
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
BROKEN = "raise SystemExit('no configuration')"
MISLED = "import os; raise SystemExit(os.EX_CONFIG)"
PROGRAMS = {"nest": NEST, "deaf": DEAF, "broken": BROKEN, "misled": MISLED}


def row(name, program, data_dir):
    mark = data_dir / f"{name}.mark"
    return ChildSpec(
        name=name,
        command=(sys.executable, "-c", PROGRAMS[program], str(mark)),
        environment=os.environ,
        grace_s=600,
        ready=mark.exists,
    )


def announce():
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def main(data_dir, api):
    run_dir = data_dir / "run"
    socket = run_dir / "redis.sock"
    with locked_run_dir(run_dir) as lock:
        redis = ChildSpec(
            name="redis",
            command=server_command(find_server(None), socket=socket, data_dir=data_dir),
            environment=os.environ,
            ready=lambda: is_ready(socket),
            keep_fds=(lock,),
        )
        table = [redis, row("worker", "nest", data_dir), row("api", api, data_dir)]
        Supervisor(table, run_dir=run_dir).run(announce)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
