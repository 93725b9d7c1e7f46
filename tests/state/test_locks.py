"""The lock keeps others out, and lets go whatever happens."""

import os
import threading

import pytest

from state.files import locked


def test_one_holds_the_lock_at_a_time(tmp_path):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(tmp_path / "locks" / "one"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "lock"):
        raise RuntimeError
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.timeout(20)
def test_a_child_forked_meanwhile_does_not_keep_the_lock(tmp_path):
    reading, writing = os.pipe()
    with locked(tmp_path / "lock"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with locked(tmp_path / "lock"):
        os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)
