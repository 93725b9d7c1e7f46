"""Compress a real model over HTTP: `make demo`.

Starts the service on a free port, halves the linear weights of all-MiniLM-L6-v2, prints the report, and loads
the result into stock torch modules. All its files are in demo/, or in the directory given as its argument.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import torch
from safetensors.torch import load_file

from eckart import Client, EckartError
from eckart.bars import progress_for
from eckart.table import report_table
from eckart.torch import load_compressed
from examples.minilm import MiniLM, installed, token_ids

ROOT = Path(__file__).parent.parent
PLACE = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "demo").absolute()
START_S = 120
STOP_S = 60
SENTENCES = (
    "a cat sleeps on the warm sofa",
    "the kitten is resting on a couch",
    "the stock market fell sharply today",
    "prices of shares dropped this morning",
)


def main() -> int:
    model = installed("model.safetensors")
    result = PLACE / "all-minilm-l6-v2-svd"
    shutil.rmtree(result, ignore_errors=True)
    with service() as url, Client(url) as client, closing(progress_for(sys.stderr)) as progress:
        job = client.compress(model, {"method": "svd", "rank": {"ratio": 0.5}}, progress=progress)
        report = client.report(job.id)
        files = client.download(job.id, result, progress=progress)
    print(f"\n{report_table(report)}")
    print("Files:", *(f"  {shown(path)}  {path.stat().st_size:,} bytes" for path in files), sep="\n")
    compare(model, result)
    return 0


@contextmanager
def service() -> Iterator[str]:
    """Run the whole service on a free port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    PLACE.mkdir(parents=True, exist_ok=True)
    log = PLACE / "service.log"
    settings = {"ECKART_HOST": "127.0.0.1", "ECKART_PORT": str(port), "ECKART_DATA_DIR": str(PLACE / "data")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "eckart", "serve"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this script only, which then stops the service cleanly
        )
    try:
        url = f"http://127.0.0.1:{port}"
        print(f"Starting the service on {url}; its log is {shown(log)}")
        wait_until_ready(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + START_S
    with httpx.Client(trust_env=False) as http:
        while time.monotonic() < ends_at:
            if process.poll() is not None:
                sys.exit(f"The service ended before it was ready:\n{log.read_text()}")
            try:
                if http.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    sys.exit(f"The service is not ready after {START_S} s:\n{log.read_text()}")


def shown(path: Path) -> Path:
    """Shorten a path inside the repository."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def compare(original: Path, result: Path) -> None:
    """Load both files into the same stock modules and print what each says about the sentences."""
    before, after = MiniLM().eval(), load_compressed(MiniLM(), result).eval()
    before.load_state_dict(load_file(original))
    print("\nLoaded back, strictly; for example", after.get_submodule("encoder.layer.0.attention.self.query"))
    with torch.inference_mode():
        for name, model in (("original", before), ("compressed", after)):
            vectors = torch.stack([model(token_ids(sentence)) for sentence in SENTENCES])
            print(f"\nHow alike the sentences are to the {name} model (cosine):")
            for sentence, row in zip(SENTENCES, vectors @ vectors.T, strict=True):
                print(f"  {sentence:<40}", *(f"{value:5.2f}" for value in row.tolist()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
