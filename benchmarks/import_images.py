"""Measures `vitc-sweep data import`: seconds, and the largest memory of all its processes together.

    python -m benchmarks.import_images [--small 50000] [--photos 2000] [--workers 1 2]

Makes a tree of small JPEGs (64 x 64 pixels) and one of photographs (4000 x 3000 pixels, 2.4 MB each), in ten
classes each; the files differ in a comment. Imports each tree in a process of its own, and deletes it. For
comparison, another process decodes the same files with Pillow, one by one. Of a count of 0, no tree is made.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

#: Runs the command, or decodes one file after the other, and prints seconds and the largest resident memory.
IMPORT = """
import resource, sys, time
from pathlib import Path
from trainables.data.packing import import_folder
if __name__ == "__main__":
    workers = int(sys.argv[3])
    began = time.perf_counter()
    import_folder(Path(sys.argv[1]), Path(sys.argv[2]), workers=workers)
    seconds = time.perf_counter() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Of its children, the system tells the largest.
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * workers if workers > 1 else 0
    print(seconds, (own + others) / 2**10)
"""
DECODE = """
import resource, sys, time
from pathlib import Path
from PIL import Image
began = time.perf_counter()
for path in sorted(Path(sys.argv[1]).rglob("*.jpg")):
    with Image.open(path) as image:
        image.convert("RGB")
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def jpeg(side: tuple[int, int], num_bytes: int) -> bytes:
    """Returns a JPEG of smooth noise of about so many bytes."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (side[1] // 4, side[0] // 4, 3), np.uint8)
    image = Image.fromarray(small).resize(side, Image.Resampling.BICUBIC)
    best = b""
    for quality in range(5, 100, 5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        best = buffer.getvalue()
        if len(best) >= num_bytes:
            break
    return best


def plant(root: Path, count: int, picture: bytes) -> int:
    """Writes a tree of pictures that differ in a comment. Returns their bytes."""
    total = 0
    for number in range(count):
        comment = f"{number:08}".encode()
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2) + comment
        folder = root / f"class_{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        total += (folder / f"{number:08}.jpg").write_bytes(picture[:2] + segment + picture[2:])
    return total


def measured(code: str, *arguments: str | Path | int) -> tuple[float, float]:
    """Returns seconds and MiB of a process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, encoding="utf-8", check=True
    )
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=50_000, help="small images; 0 for none")
    parser.add_argument("--photos", type=int, default=2_000, help="photographs; 0 for none")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("images  MB each  made by   seconds  images/s  peak MiB")
    for count, side, num_bytes in ((options.small, (64, 64), 0), (options.photos, (4000, 3000), 2_400_000)):
        if not count:
            continue
        picture = jpeg(side, num_bytes)
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            total = plant(Path(place) / "tree", count, picture)
            made = time.perf_counter() - began
            tree, target = Path(place) / "tree", Path(place) / "out.parquet"
            rows = {
                f"import, {workers}": measured(IMPORT, tree, target.with_stem(f"out{workers}"), workers)
                for workers in options.workers
            } | {"Pillow": measured(DECODE, tree)}
            for name, (seconds, memory) in rows.items():
                print(
                    f"{count:>6,}{total / count / 1e6:>9.3f}  {name:10}{seconds:>7.1f}"
                    f"{count / seconds:>10.0f}{memory:>10.0f}"
                )
            print(f"the tree was made in {made:.0f} s")


if __name__ == "__main__":
    main()
