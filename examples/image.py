"""An image as a matrix, at four ranks by svd, cx and cur: `python -m examples.image`.

Draws a grey image of its own, sends it to a service as the only weight of a checkpoint, and multiplies the
factors that come back. Leaves the image and every approximation as PNG files in study/image/, with a table of
what each stores.
"""

import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.standalone import running
from eckart import Client, EckartError
from examples.arguments import arguments
from examples.page import DOCS, put, table

HEIGHT, WIDTH = 512, 768
METHODS = ("svd", "cx", "cur")
RANKS = (100, 50, 30, 10)
PAGE = DOCS / "11-image.md"
PICTURE = DOCS / "pictures" / "image.png"
COLUMNS = ("method", "rank", "numbers stored", "share of the original", "relative error")
# How the overview of all approximations is made smaller: every 4 x 4 pixels become one, in 64 greys.
SHRINK, GREY_STEP, GAP = 4, 4, 6

Grey = NDArray[np.float64]


def drawn() -> Grey:
    """Draw hills under a sky, which are smooth, and things with edges: a moon, a star and a house."""
    y, x = (axis.astype(float) for axis in np.mgrid[0:HEIGHT, 0:WIDTH])
    image = 200 - 0.15 * y + 20 * np.cos(x / 190) + 70 * np.exp(-_squares(x - 560, y - 120) / 9800)
    far = 260 + 45 * np.sin(x / 95) + 18 * np.sin(x / 31 + 1)
    near = 350 + 60 * np.sin(x / 150 + 2)
    furrows = 18 * np.sin((x + 2.2 * y) / 7) * np.exp(-_squares(x - 250, y - 450) / 20_000)
    image[y > far] = (120 + 25 * np.sin(x / 60 + y / 45))[y > far]
    image[y > near] = (80 + furrows + 0.12 * (y - near))[y > near]
    image[_squares(x - 150, y - 130) < 62**2] = 40
    image[_squares(x - 168, y - 118) < 46**2] = 225
    for angle in np.arange(9) * np.pi / 9:
        from_ray = np.abs((x - 330) * np.sin(angle) - (y - 150) * np.cos(angle))
        image[(from_ray < 1.6) & (_squares(x - 330, y - 150) < 75**2)] = 20
    beside = np.abs(x - 600)
    image[(beside < 70) & (np.abs(y - 385) < 60)] = 170
    image[(y > 265) & (y < 325) & (beside < 1.35 * (y - 265))] = 55
    image[(beside < 56) & (np.abs(y - 375) < 42) & ((x // 14 + y // 14) % 2 == 0)] = 30
    return greys(image)


def _squares(x: Grey, y: Grey) -> Grey:
    return x**2 + y**2


def greys(values: Grey) -> Grey:
    """Round to the greys of a byte; what lies outside becomes black or white."""
    return np.clip(np.rint(values), 0, 255)


def png(image: Grey) -> bytes:
    """Encode greys as a PNG file: each row as its difference to the one above, which compresses well."""
    rows = image.astype(np.uint8)
    differences = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # modulo 256
    up = np.full((len(rows), 1), 2, np.uint8)
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 0, 0, 0, 0)
    lines = zlib.compress(np.hstack([up, differences]).tobytes(), 9)
    parts = (_chunk(b"IHDR", head), _chunk(b"IDAT", lines), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@dataclass(frozen=True)
class Kept:
    """What a job kept of the image."""

    method: str
    rank: int
    numbers: int
    relative_error: float
    image: Grey


def kept(client: Client, checkpoint: str, method: str, rank: int, place: Path) -> Kept:
    """Run one job, and multiply the factors that it stored."""
    job = client.compress(checkpoint, {"method": method, "rank": rank})
    (layer,) = client.report(job.id).layers
    assert layer.relative_error is not None
    client.download(job.id, place)
    factors = [factor.astype(float) for _, factor in sorted(load_file(place / "image.safetensors").items())]
    numbers = sum(factor.size for factor in factors)
    image = np.linalg.multi_dot(factors[::-1])  # The first factor is the first that an input meets.
    return Kept(method, rank, numbers, layer.relative_error, image)


def all_kept(client: Client, image: Grey, place: Path) -> list[Kept]:
    """Send the image, and run a job for each method and rank."""
    file = place / "image.safetensors"
    save_file({"image.weight": image.astype(np.float32)}, file)
    checkpoint = client.upload(file)
    return [
        kept(client, checkpoint, method, rank, place / f"{method}-{rank}")
        for method, rank in product(METHODS, RANKS)
    ]


def storage_table(results: Sequence[Kept]) -> str:
    """Return a table with one line for each job."""
    lines = [
        (
            one.method,
            f"{one.rank}",
            f"{one.numbers:,}",
            f"{one.numbers / one.image.size:.3f}",
            f"{one.relative_error:.4f}",
        )
        for one in results
    ]
    return table(COLUMNS, lines)


def overview(results: Sequence[Kept]) -> Grey:
    """Put all approximations side by side: one row for each method, one column for each rank."""
    tiles = {(one.method, one.rank): _smaller(greys(one.image)) for one in results}
    return np.vstack([np.hstack([tiles[method, rank] for rank in RANKS]) for method in METHODS])


def _smaller(image: Grey) -> Grey:
    blocks = image.reshape(HEIGHT // SHRINK, SHRINK, WIDTH // SHRINK, SHRINK)
    tile = np.rint(blocks.mean((1, 3)) / GREY_STEP) * GREY_STEP
    return np.pad(np.clip(tile, 0, 255), ((0, GAP), (0, GAP)), constant_values=255)


def main() -> int:
    given = arguments("image", __doc__)
    place = given.into / "image"
    place.mkdir(parents=True, exist_ok=True)
    image = drawn()
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        results = all_kept(client, image, place)
    (place / "original.png").write_bytes(png(image))
    for one in results:
        (place / f"{one.method}-{one.rank}.png").write_bytes(png(greys(one.image)))
    print(storage_table(results))
    if given.docs:
        PAGE.write_text(put(PAGE.read_text(), "image", storage_table(results)))
        PICTURE.write_bytes(png(overview(results)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"image: {error}")
    except KeyboardInterrupt:
        sys.exit("image: interrupted")
